"""Sheets of attention: the class token's, its rollout, and that of a clicked point over its window."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visionattn.analysis.attention import (
    SUPPORTED,
    AttentionLayer,
    attention_layers,
    record_attention,
    unrecorded_mixers,
)
from visionattn.analysis.recorded import RecordedAttention, TokenAttention
from visionattn.analysis.subject import LookOptions, NoSheetError, Subject
from visionattn.errors import UserError
from visionattn.evaluation.drawing import spread
from visionattn.layers.dual_cross_attention import rollout_class_token

if TYPE_CHECKING:
    from visionattn.viz.head_maps import HeadRow
    from visionattn.viz.image import Pixels

MAX_HEADS = 12
"""Largest number of heads that are drawn by default; of more heads, this many are drawn, evenly spaced."""
ROLLOUTS = 4
"""Depths at which the rollout is drawn by default."""
NEGATIVE = 5e-4
"""Size of a negative weight that is worth a note."""
BRIGHTEST = 0.99
"""Quantile of a rollout that is drawn brightest: in many ViTs a few patches collect most of it."""


def draw_attention(subject: Subject, options: LookOptions) -> "Pixels":
    """Draw the attention of the class token in blocks of a ViT, by default the last: a column for each head.

    Without a class token, the attention of the clicked point's patch.
    """
    layers = _token_layers(subject)
    if not layers[0].has_class_token:
        return _draw_queries(subject, options, layers, [-1])
    chosen = _choose(subject, layers, options.blocks or [-1])

    def read(recorded: RecordedAttention) -> Any:
        assert isinstance(recorded, TokenAttention)
        return _copy(recorded.token_row(0)), None, None

    rows = _head_rows(subject, options, chosen, read)
    return _draw(rows, f"{subject.title}: attention of the class token to each patch", options)


def draw_rollout(subject: Subject, options: LookOptions) -> "Pixels":
    """Draw the attention rollout of the class token from blocks of a ViT down to the patches.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, https://arxiv.org/abs/2005.00928,
    equation 1: with the attention W of a block, averaged over heads, and A = 0.5 W + 0.5 I for the residual connection,

        Ã(l_i) = A(l_i) Ã(l_{i-1}),  Ã(l_0) = A(l_0),

    of which the class token's row is drawn, without the prefix tokens.
    """
    from visionattn.viz.head_maps import HeadRow

    layers = _token_layers(subject)
    if not layers[0].has_class_token:
        raise NoSheetError(f"{subject.loaded.name} has no class token whose rollout could be drawn")
    depths = options.blocks or [(len(layers) * part - 1) // ROLLOUTS for part in range(ROLLOUTS, 0, -1)][::-1]
    chosen = [number for number, _ in _choose(subject, layers, depths)]
    prefix = layers[0].num_prefix_tokens

    def read(recorded: RecordedAttention) -> Any:
        assert isinstance(recorded, TokenAttention)
        return recorded.weights.mean(1).float(), recorded.size

    rows = []
    for pixels, found in _look(subject, dict(enumerate(layers[: max(chosen) + 1])), read):
        scores, size = [weights for weights, _ in found.values()], found[0][1]
        maps = [
            rollout_class_token(scores[: depth + 1])[0, prefix:].unflatten(0, size).cpu().numpy() for depth in chosen
        ]
        rows.append(HeadRow(pixels, maps, ["image", *(f"to block {depth}" for depth in chosen)]))
    return _draw(rows, f"{subject.title}: attention rollout of the class token", options, BRIGHTEST)


def draw_window(subject: Subject, options: LookOptions) -> "Pixels":
    """Draw the attention of the clicked point over its window: by default in the last block of each size of map."""
    layers = attention_layers(subject.network)
    if not layers:
        raise NoSheetError(_no_attention(subject))
    return _draw_queries(subject, options, layers, None)


def draw_heads(subject: Subject, options: LookOptions) -> "Pixels":
    """Draw the attention of each head in all blocks: of the class token, or else of the clicked point."""
    layers = attention_layers(subject.network)
    draw = draw_attention if layers and all(layer.sees_all for layer in layers) else draw_window
    return draw(subject, replace(options, blocks=options.blocks or range(len(layers))))


def _draw_queries(
    subject: Subject, options: LookOptions, layers: Sequence[AttentionLayer], default: Sequence[int] | None
) -> "Pixels":
    x, y = options.point
    numbers = options.blocks or default or _last_of_each_size(subject, layers)

    def read(recorded: RecordedAttention) -> Any:
        query = recorded.query_at(x, y)
        place = query[0] * recorded.stride[0], query[1] * recorded.stride[1]
        return _copy(recorded.row(query)), recorded.visible(query).cpu(), place

    rows = _head_rows(subject, options, _choose(subject, layers, numbers), read)
    mixers = unrecorded_mixers(subject.network)
    left_out = f"; that of {' and '.join(mixers)} is not drawn" if mixers else ""
    return _draw(rows, f"{subject.title}: attention of the marked point ({x:g}, {y:g}){left_out}", options)


def _copy(row: Tensor) -> Tensor:
    """Return the maps `[h, H, W]` of the only image; not as a view, which would keep all weights of a ViT's layer."""
    return row[0].to("cpu", torch.float32, copy=True)


def _head_rows(
    subject: Subject,
    options: LookOptions,
    chosen: Sequence[tuple[int, AttentionLayer]],
    read: Callable[[RecordedAttention], tuple[Tensor, Tensor | None, tuple[int, int] | None]],
) -> "list[HeadRow]":
    """Return a row of heads for each image and layer; `read` returns maps `[h, H, W]`, their window and the point."""
    from visionattn.viz.head_maps import HeadRow

    rows = []
    for pixels, found in _look(subject, dict(chosen), read):
        for number, layer in chosen:
            maps, window, point = found[number]
            heads = _choose_heads(layer, len(maps), options.heads)
            maps = torch.cat([maps[heads], maps.mean(0, keepdim=True)]).numpy()
            label = f"block {number}: {'x'.join(map(str, maps.shape[1:]))}"
            captions = [label, *(f"head {head}" for head in heads), "mean of all heads"]
            notes = [f"max {each.max():.1%}" + _least(each.min()) for each in maps]
            rows.append(HeadRow(pixels, maps, captions, None if window is None else window.numpy(), point, notes))
    return rows


def _least(weight: float) -> str:
    """Return what to say of the smallest weight, which is negative in a local linear regression and drawn as 0."""
    return f", min {weight:.1%}" if weight < -NEGATIVE else ""


def _look(subject: Subject, layers: Any, read: Callable[[RecordedAttention], Any]) -> Any:
    """Yield for each image its pixels, and what is read of each layer; one by one, for the weights take memory."""
    for pixels, image in zip(subject.pixels, subject.one_by_one("attention"), strict=True):
        with record_attention(layers, read) as found, torch.no_grad():
            subject.network(image)
        yield pixels, found


def _draw(rows: "Sequence[HeadRow]", title: str, options: LookOptions, quantile: float | None = None) -> "Pixels":
    from visionattn.viz.head_maps import draw_head_maps

    return draw_head_maps(rows, title=title, height=options.height, quantile=quantile)


def _token_layers(subject: Subject) -> list[AttentionLayer]:
    layers = attention_layers(subject.network)
    if not layers:
        raise NoSheetError(_no_attention(subject))
    if not all(layer.sees_all for layer in layers):
        raise NoSheetError(
            f"{subject.loaded.name} attends within windows or maps, without a class token; --show window draws that"
        )
    return layers


def _no_attention(subject: Subject) -> str:
    mixers = unrecorded_mixers(subject.network)
    reason = f" (its mixer is {' and '.join(mixers)})" if mixers else ""
    return f"{subject.loaded.name} has no attention that can be recorded{reason}; {SUPPORTED} have"


def _choose(
    subject: Subject, layers: Sequence[AttentionLayer], numbers: Sequence[int]
) -> list[tuple[int, AttentionLayer]]:
    """Return the layers of these numbers, which count from the last if negative, with numbers from the first."""
    for number in numbers:
        if not -len(layers) <= number < len(layers):
            raise UserError(f"--blocks {number}: {subject.loaded.name} has attention in blocks 0 to {len(layers) - 1}")
    return [(number % len(layers), layers[number]) for number in numbers]


def _choose_heads(layer: AttentionLayer, count: int, heads: Sequence[int] | None) -> list[int]:
    for head in heads or ():
        if not -count <= head < count:
            raise UserError(f"--heads {head}: {layer.name} has heads 0 to {count - 1}")
    return [head % count for head in heads or spread(count, MAX_HEADS)]


def _last_of_each_size(subject: Subject, layers: Sequence[AttentionLayer]) -> list[int]:
    """Return the number of the last layer on each size of map."""
    with record_attention(dict(enumerate(layers)), lambda recorded: recorded.size) as sizes, torch.no_grad():
        subject.network(subject.images[:1])
    return sorted({size: number for number, size in sizes.items()}.values())
