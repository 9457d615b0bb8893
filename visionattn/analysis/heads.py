"""Heads of attention layers: which a network has, and changes of their outputs.

A head's output is its slice of the input of the layer's output projection. HaloNet's attention has no such projection:
there it is a slice of the layer's output.

    layers = head_layers(model)
    with change_heads({layers[3]: keep_but([1], 0.0)}), torch.no_grad():
        model(images)  # without head 3.1

Shapes: h heads of width d.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from timm.layers.halo_attn import HaloAttn
from torch import Tensor, nn

from visionattn.analysis.attention import SUPPORTED, AttentionLayer, attention_layers, unrecorded_mixers
from visionattn.errors import UsageError, UserError
from visionattn.layers.halo_attention import HaloAttention2d

Head = tuple[int, int]
"""Number of an attention layer through the whole network, and number of a head in it, both from 0."""

HeadValues = dict[Head, dict[str, float | None]]
"""Figures of heads by name; None where a head has no such figure."""

Edit = Callable[[Tensor], Tensor]
"""Returns the outputs of a layer's heads `[..., h, d]` in place of those that it gets."""


@dataclass(frozen=True, eq=False)
class HeadLayer:
    """An attention layer and the module where its heads meet.

    Attributes:
        number: Number among the attention layers of the network.
        attention: The layer, whose weights can be recorded.
        num_heads: h.
        proj: The output projection; None where the layer has none.
    """

    number: int
    attention: AttentionLayer
    num_heads: int
    proj: nn.Module | None

    @property
    def name(self) -> str:
        """Path of the layer's block in the network, such as ``blocks.11``."""
        return self.attention.name

    @property
    def module(self) -> Any:
        """The attention module, also of Swin's block."""
        return getattr(self.attention.module, "attn", self.attention.module)

    @property
    def heads(self) -> list[Head]:
        """All heads of the layer."""
        return [(self.number, head) for head in range(self.num_heads)]

    def watch(self, edit: Edit) -> Any:
        """Change the outputs of the heads in each forward pass until the handle that is returned is removed."""
        if self.proj is None:
            return self.module.register_forward_hook(
                lambda _, inputs, out: self._edit(edit, out.movedim(1, -1)).movedim(-1, 1)
            )
        return self.proj.register_forward_pre_hook(lambda _, inputs: (self._edit(edit, inputs[0]), *inputs[1:]))

    def _edit(self, edit: Edit, values: Tensor) -> Tensor:
        return edit(values.unflatten(-1, (self.num_heads, -1))).flatten(-2)


def head_layers(model: nn.Module, name: str = "the model") -> list[HeadLayer]:
    """Return the attention layers of a model with their heads, in the order of the network.

    Raises:
        UserError: The model has no attention that can be recorded; the message uses `name`.
    """
    layers = attention_layers(model)
    if not layers:
        mixers = unrecorded_mixers(model)
        why = f"its mixer {' and '.join(mixers)} has no attention weights" if mixers else "it has no such attention"
        raise UserError(f"{name} has no attention heads to study: {why}; {SUPPORTED} have")
    return [_with_heads(number, layer) for number, layer in enumerate(layers)]


def _with_heads(number: int, layer: AttentionLayer) -> HeadLayer:
    module: Any = getattr(layer.module, "attn", layer.module)
    proj = None if isinstance(module, HaloAttention2d | HaloAttn) else module.proj
    return HeadLayer(number, layer, module.num_heads, proj)


@contextmanager
def change_heads(edits: Mapping[HeadLayer, Edit]) -> Iterator[None]:
    """Change the outputs of the heads of layers in forward passes within a `with` block."""
    with ExitStack() as stack:
        for layer, edit in edits.items():
            stack.callback(layer.watch(edit).remove)
        yield


def replace_heads(heads: Sequence[int], values: Tensor | float) -> Edit:
    """Return an edit that puts `values` in the place of some heads' outputs.

    Args:
        heads: Numbers of the heads.
        values: A number, or a tensor `[..., h, d]` of all heads, such as their means `[h, d]`.
    """

    def edit(outputs: Tensor) -> Tensor:
        changed = outputs.clone()
        given = values[..., heads, :].to(outputs) if isinstance(values, Tensor) else values
        changed[..., heads, :] = given
        return changed

    return edit


def by_layer(heads: Iterable[Head]) -> dict[int, list[int]]:
    """Return the numbers of heads by the number of their layer, both in order."""
    found: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        found.setdefault(layer, []).append(head)
    return found


def head_name(head: Head) -> str:
    """Return the name of a head, LAYER.HEAD."""
    return f"{head[0]}.{head[1]}"


def parse_heads(words: Sequence[str], layers: Sequence[HeadLayer], option: str = "--ablate") -> list[Head]:
    """Return the heads of names such as 3.1; 3.all, or 3 alone, means all heads of layer 3.

    Raises:
        UsageError: A name of another form, or no such head.
    """
    found: list[Head] = []
    for word in words:
        match = re.fullmatch(r"(\d+)(?:\.(\d+|all))?", word.strip())
        if match is None:
            raise UsageError(f"{option} takes heads as LAYER.HEAD: 3.1,4.0, not {word!r}")
        number = int(match[1])
        if number >= len(layers):
            raise UsageError(f"{option} {word}: there are attention layers 0 to {len(layers) - 1}")
        layer = layers[number]
        if match[2] in (None, "all"):
            found += layer.heads
        elif int(match[2]) >= layer.num_heads:
            raise UsageError(f"{option} {word}: layer {number} has heads 0 to {layer.num_heads - 1}")
        else:
            found.append((number, int(match[2])))
    return list(dict.fromkeys(found))


def choose_heads(
    layers: Sequence[HeadLayer], numbers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> list[Head]:
    """Return the heads of these numbers in the layers of these numbers, which count from the last if negative.

    Args:
        layers: All layers.
        numbers: Numbers of layers; None for all.
        heads: Numbers of heads; None for all. A layer that lacks one of them is an error.

    Raises:
        UsageError: There is no such layer or head.
    """
    for number in numbers or ():
        if not -len(layers) <= number < len(layers):
            raise UsageError(f"--layers {number}: there are attention layers 0 to {len(layers) - 1}")
    chosen = range(len(layers)) if numbers is None else sorted({number % len(layers) for number in numbers})
    found: list[Head] = []
    for layer in (layers[number] for number in chosen):
        for head in heads or ():
            if not 0 <= head < layer.num_heads:
                raise UsageError(f"--heads {head}: layer {layer.number} has heads 0 to {layer.num_heads - 1}")
        found += layer.heads if heads is None else [(layer.number, head) for head in sorted(set(heads))]
    return found
