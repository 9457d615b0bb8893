"""Scores laid out by window slot, `[B, Q_h, Q_w, heads, k_h * k_w]`: which slots exist, and the biases at them.

A window's slots are its keys in order, read row by row: slot e of an axis is key `start + e` of the query's interval.
Plain differentiable torch, to any order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels.device_tables import device_tables
from visionattn_kernels.operators import accumulation_dtype
from visionattn_kernels.window import AxisWindow, Window


def tabulate_slots(axis: AxisWindow, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tabulate what an axis of `length` keys holds at each slot.

    Returns:
        `offset [Q, k]`, the entry `(key - query) / dilation + kernel_size - 1` of a relative table, and
        `exists [Q, k]`, whether the slot takes part; where it does not, its offset is any.
    """
    _, index, group_length = axis.groups(length)
    start, stop = axis.interval(index, group_length)
    key = start[:, None] + torch.arange(axis.kernel_size, device="cpu")
    offset = (key - index[:, None] + axis.kernel_size - 1).clamp(0, 2 * axis.kernel_size - 2)
    return offset.to(device), (key < stop[:, None]).to(device)


_cached_slots = device_tables(tabulate_slots)


def is_complete(axis: AxisWindow, length: int) -> bool:
    """Return whether every slot of every query of the axis exists."""
    if axis.is_causal or axis.boundary == "mask":
        return axis.kernel_size == 1
    return axis.boundary == "zero" or axis.kernel_size <= length // axis.dilation


def finish_scores(
    scores: Tensor,
    window: Window,
    size: tuple[int, int],
    rpb: Tensor | None = None,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
) -> Tensor:
    """Add biases to products, and -inf where a slot does not exist.

    Args:
        scores: `[B, Q_h, Q_w, heads, k_h * k_w]`.
        window: Which keys a query sees.
        size: Height and width of the key map.
        rpb: `[heads, 2 k_h - 1, 2 k_w - 1]`, as in `windowed_attention`.
        rel_h: `[B, Q_h, Q_w, heads, 2 k_h - 1]`.
        rel_w: `[B, Q_h, Q_w, heads, 2 k_w - 1]`.

    Returns:
        The same shape, in float32 or wider where there is a bias.
    """
    # A trace warns of caches, and fake scores want fake tables.
    tabulate = tabulate_slots if torch.compiler.is_compiling() or type(scores) is not Tensor else _cached_slots
    (offset_h, exists_h), (offset_w, exists_w) = (
        tabulate(axis, length, scores.device) for axis, length in zip(window.axes, size, strict=True)
    )
    scores = scores.unflatten(-1, window.kernel_size)
    if rpb is not None:
        entry = offset_h[:, None, :, None] * rpb.shape[2] + offset_w[:, None]  # [Q_h, Q_w, k_h, k_w]
        table = rpb.flatten(1).T.to(accumulation_dtype(rpb.dtype))  # its gradient is a sum over all queries
        scores = scores + F.embedding(entry, table).movedim(-1, 2)
    if rel_h is not None:
        scores = scores + _look_up(rel_h, offset_h[:, None, None])[..., :, None]
    if rel_w is not None:
        scores = scores + _look_up(rel_w, offset_w[:, None])[..., None, :]
    if not all(is_complete(axis, length) for axis, length in zip(window.axes, size, strict=True)):
        exists = exists_h[:, None, None, :, None] & exists_w[:, None, None]  # [Q_h, Q_w, 1, k_h, k_w]
        scores = scores.masked_fill(~exists, -torch.inf)
    return scores.flatten(-2)


def _look_up(logits: Tensor, offset: Tensor) -> Tensor:
    """Look up logits `[B, Q_h, Q_w, heads, R]` at the offsets of each query's slots."""
    return logits.gather(-1, offset.expand(*logits.shape[:-1], -1))
