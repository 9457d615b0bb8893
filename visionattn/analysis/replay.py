"""Forward passes that start at a later layer: of the earlier ones, the outputs of a recorded pass are taken."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from typing import Any, cast

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from visionattn.analysis.heads import Edit, HeadLayer, change_heads
from visionattn.layers.dual_cross_attention import DualCrossAttention, DualCrossBlock


class Replay:
    """Passes of a network on one batch of images, with changes of heads.

    The first pass, `record`, keeps what each block with attention returns, and the outputs of the heads. Later passes
    on the same images compute only what comes after the last block before the change: on average half of the network.
    Of a ViT's last block they compute the class token alone, if nothing else is read of it.

    Memory: an output of each block, and the outputs of its heads, for one batch.

    Args:
        network: The network, in evaluation mode, or a classifier around it.
        layers: Its layers, see `head_layers`.
    """

    def __init__(self, network: nn.Module, layers: Sequence[HeadLayer]) -> None:
        self.network, self.layers = network, layers
        names = dict(network.named_modules())
        self._blocks = [_Block(names[layer.name]) for layer in layers]
        self._stems = [_Block(module) for name, module in names.items() if name.rpartition(".")[2] == "patch_embed"]
        self._last = names[layers[-1].name]
        self._read = _class_token_alone(self._last) if _reads_class_token(network, self._last) else None
        self.heads: list[Tensor] = []
        """Outputs of the heads of each layer in the recorded pass, `[..., h, d]`."""

    def record(self, images: Tensor) -> Any:
        """Return the network's output for images `[B, C, H, W]`, and keep what the blocks return."""
        self.heads = [None] * len(self.layers)  # type: ignore[list-item]

        def keep(layer: HeadLayer) -> Edit:
            def store(values: Tensor) -> Tensor:
                self.heads[layer.number] = values
                return values

            return store

        with change_heads({layer: keep(layer) for layer in self.layers}), ExitStack() as stack:
            for block in (*self._stems, *self._blocks):
                stack.enter_context(block.recording())
            return self.network(images)

    def run(self, images: Tensor, edits: dict[HeadLayer, Edit]) -> Any:
        """Return the network's output for the recorded images, with changes of heads.

        Args:
            images: The images of the recorded pass.
            edits: Changes by layer; none repeats the recorded pass.
        """
        first = min(edits, key=lambda layer: layer.number, default=self.layers[-1])
        with change_heads(edits), ExitStack() as stack:
            for block in (*self._stems, *self._blocks[: first.number]):
                stack.enter_context(block.returning())
            if self._read is not None and self.layers[-1] not in {first, *edits}:
                stack.enter_context(replaced(self._last, "forward", self._read))
            stack.enter_context(replaced(first.module, "forward", lambda *_, **__: self._finish(first)))
            return self.network(images)

    def _finish(self, layer: HeadLayer) -> Tensor:
        """Return what follows the recorded heads in a layer; the caller's edits change them on the way."""
        outputs = self.heads[layer.number].flatten(-2)
        return outputs.movedim(-1, 1) if layer.proj is None else layer.proj(outputs)


def _reads_class_token(network: Any, block: Any) -> bool:
    """Return True if a network reads nothing but the class token of its last block, whose attention is timm's."""
    return (
        type(network) is VisionTransformer
        and network.global_pool == "token"
        and network.attn_pool is None
        and type(block) is Block
        and type(block.attn) is Attention
        and getattr(block.attn, "gate", None) is None
    )


def _class_token_alone(block: nn.Module) -> Callable[..., Tensor]:
    """Return the forward of a block that computes the first token, and leaves the others as they are."""
    selective, attention = copy(block), copy(cast(Any, block).attn)
    selective._modules = {**block._modules, "attn": attention}
    selective.__class__, attention.__class__ = DualCrossBlock, DualCrossAttention  # which compute some tokens alone

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.cat([cast(Any, selective).forward_selected(x[:, :1], x), x[:, 1:]], dim=1)

    return forward


class _Block:
    """A module of a network and what it returned; of DCAL's, whose network does not call `forward`, the same method."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.returned = module, cast(Any, None)
        self.method = "forward_parts" if hasattr(module, "forward_parts") else "forward"

    def recording(self) -> AbstractContextManager[None]:
        compute = getattr(self.module, self.method)

        def record(*args: Any, **kwargs: Any) -> Any:
            self.returned = compute(*args, **kwargs)
            return self.returned

        return replaced(self.module, self.method, record)

    def returning(self) -> AbstractContextManager[None]:
        return replaced(self.module, self.method, lambda *_, **__: self.returned)


@contextmanager
def replaced(module: nn.Module, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of one module within a `with` block."""
    held = vars(module).get(method)
    setattr(module, method, function)
    try:
        yield
    finally:
        if held is None:
            delattr(module, method)
        else:
            setattr(module, method, held)
