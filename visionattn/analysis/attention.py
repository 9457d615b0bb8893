"""Attention weights of models: one recorder for the attention of timm's ViTs and Swins and of this library's networks.

    layers = attention_layers(model)
    with record_attention(dict(enumerate(layers))) as found, torch.no_grad():
        model(images)
    found[0].row((3, 5))  # weights of the query in row 3, column 5

A recorded layer gives the weights of chosen queries. Only layers that see all tokens, and Swin's, hold all weights,
because their networks compute them all.

Shapes: B images, h heads, E prefix tokens, N tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope
from timm.layers.halo_attn import HaloAttn
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn

from visionattn.analysis.recorded import RecordedAttention, ShiftedWindowAttention, TokenAttention, WindowAttention
from visionattn.layers.accelerate import from_timm
from visionattn.layers.halo_attention import HaloAttention2d
from visionattn.layers.mixers import MIXERS
from visionattn.layers.mixers.packed import PackedAttention2d
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn.models.cut_heads import HeadlessAttention
from visionattn.probing.frozen import num_reg_tokens

Key = TypeVar("Key")


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer of a network.

    Attributes:
        name: Path of the layer's block in the network, such as ``blocks.11``.
        module: The attention, or Swin's block, which knows its windows.
        num_prefix_tokens: E.
        has_class_token: Whether the first token is a class token.
        grid: Rows and columns of patches; by default the map's own, or a square.
    """

    name: str
    module: nn.Module
    num_prefix_tokens: int = 0
    has_class_token: bool = False
    grid: tuple[int, int] | None = None

    @property
    def sees_all(self) -> bool:
        """True if every token sees every other, so that all weights are recorded."""
        return isinstance(self.module, TOKEN_ATTENTION)

    def watch(self, store: Callable[[RecordedAttention], None], stack: ExitStack) -> None:
        """Call a function with what the layer does in each forward pass, until the stack is closed."""
        if self.sees_all:
            stack.enter_context(_unfused(self.module, lambda weights: store(self._of_tokens(weights))))
        elif isinstance(self.module, SWIN_BLOCKS):
            block: Any = self.module
            maps: list[Tensor] = []  # the block's input comes before its weights
            stack.callback(block.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0])).remove)
            read = _unfused(block.attn, lambda weights: store(_of_windows(block, weights, maps.pop())))
            stack.enter_context(read)
        else:
            hook = self.module.register_forward_pre_hook(lambda _, inputs: store(_of_maps(self.module, inputs[0])))
            stack.callback(hook.remove)

    def _of_tokens(self, weights: Tensor) -> TokenAttention:
        count = weights.shape[-1] - self.num_prefix_tokens
        edge = round(count**0.5)
        grid = self.grid if self.grid and self.grid[0] * self.grid[1] == count else (edge, edge)
        if grid[0] * grid[1] != count:
            raise ValueError(f"{self.name} attends to {count} patches, which are no grid of {grid[0]} × {grid[1]}")
        return TokenAttention(weights, self.num_prefix_tokens, grid)


TOKEN_ATTENTION = (Attention, AttentionRope, BeitAttention, EvaAttention, RelPosAttention)
SWIN_BLOCKS = (SwinTransformerBlock, SwinTransformerV2Block)
MAP_ATTENTION = (NeighborhoodAttention2d, PackedAttention2d, HaloAttention2d, HaloAttn)

RECORDED_MIXERS = [name for name, kind in MIXERS.items() if issubclass(kind, MAP_ATTENTION)]
SUPPORTED = (
    "timm's ViT, DeiT, BEiT, EVA, Swin and HaloNet, and this library's NAT, DiNAT, HaloNet, DCAL and mixers "
    + ", ".join(RECORDED_MIXERS)
)
"""Networks whose attention can be recorded, for messages."""


@contextmanager
def record_attention(
    layers: Mapping[Key, AttentionLayer], keep: Callable[[RecordedAttention], Any] | None = None
) -> Iterator[dict[Key, Any]]:
    """Record the attention of layers in forward passes within a `with` block.

    Fused attention does not expose weights, and is switched off meanwhile; outputs differ by rounding.

    Args:
        layers: The layers, by any keys.
        keep: Returns what to keep of a layer that has run; by default everything, which for ViTs is `[B, h, N, N]`.

    Yields:
        What is kept of the last forward pass, by the keys of the layers.
    """
    found: dict[Key, Any] = {}

    def store(key: Key, recorded: RecordedAttention) -> None:
        found[key] = recorded if keep is None else keep(recorded)

    with ExitStack() as stack:
        for key, layer in layers.items():
            layer.watch(partial(store, key), stack)
        yield found


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """Return the attention layers of a model in the order of the network, also within a classifier around it.

    Models of other kinds than `SUPPORTED` have none. Of ViTs these are the blocks, all of which attend to all tokens.
    Layers whose heads are all cut are left out.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "attn", None), HeadlessAttention):
            continue
        if isinstance(module, (*SWIN_BLOCKS, *MAP_ATTENTION)):
            found.append(AttentionLayer(name.removesuffix(".attn"), module))
        elif hasattr(module, "blocks") and hasattr(module, "patch_embed"):
            found += token_layers(module, f"{name}." if name else "")
    return found


def unrecorded_mixers(model: nn.Module) -> list[str]:
    """Return the names of a model's token mixers whose attention is not recorded."""
    kinds = {type(module) for module in model.modules()}
    return [name for name, kind in MIXERS.items() if kind in kinds and not issubclass(kind, MAP_ATTENTION)]


def token_layers(model: Any, prefix: str = "") -> list[AttentionLayer]:
    """Return the attention of a ViT's blocks, or nothing if one of them is of another kind."""
    attentions = [getattr(block, "attn", None) for block in getattr(model, "blocks", ())]
    if not all(isinstance(attention, (*TOKEN_ATTENTION, HeadlessAttention)) for attention in attentions):
        return []
    tokens = getattr(model, "num_prefix_tokens", 0)
    has_class_token = tokens > num_reg_tokens(model)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return [
        AttentionLayer(f"{prefix}blocks.{number}", attention, tokens, has_class_token, grid)
        for number, attention in enumerate(attentions)
        if isinstance(attention, TOKEN_ATTENTION)
    ]


@contextmanager
def _unfused(attention: Any, read: Callable[[Tensor], None]) -> Iterator[None]:
    """Read the weights of timm's attention where it drops some of them in training."""
    fused = getattr(attention, "fused_attn", False)
    hook = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: read(inputs[0]))
    try:
        if fused:
            attention.fused_attn = False
        yield
    finally:
        if fused:
            attention.fused_attn = True
        hook.remove()


def _of_maps(module: Any, inputs: Tensor) -> WindowAttention:
    module = from_timm(module) if isinstance(module, HaloAttn) else module
    if isinstance(module, HaloAttention2d):
        return WindowAttention(module, inputs, (inputs.shape[2], inputs.shape[3]), module.window().query_stride)
    return WindowAttention(module, inputs, (inputs.shape[1], inputs.shape[2]), (1, 1))


def _of_windows(block: Any, weights: Tensor, inputs: Tensor) -> ShiftedWindowAttention:
    """Lay out the windows of Swin's block as it does: rolled by the shift, and then padded to whole windows."""
    _, height, width, _ = inputs.shape
    keys = torch.arange(height * width, device=weights.device).view(1, height, width, 1)
    rows, columns = block.shift_size
    pad = (0, 0, 0, -width % block.window_size[1], 0, -height % block.window_size[0])
    keys = F.pad(keys.roll((-rows, -columns), (1, 2)), pad, value=height * width)
    places = window_partition(keys, block.window_size).flatten(1)
    mask = block.get_attn_mask(keys.to(weights.dtype))
    return ShiftedWindowAttention(weights, places, None if mask is None else mask == 0, (height, width))
