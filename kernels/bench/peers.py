"""Other implementations of the same problems, each behind one signature, each absent where it cannot run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn_kernels import Window, windowed_attention

Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Contender:
    """An implementation of one problem.

    Attributes:
        name: What it is called in the tables.
        version: Of the package that it comes from.
        attend: q, k, v and rpb to the output, all heads-last maps.
        same_function: Whether its output must equal the window's (full attention computes another function).
        backward: Whether it has one on this device.
        with_rpb: Whether it takes a relative bias.
    """

    name: str
    version: str
    attend: Attention
    same_function: bool = True
    backward: bool = True
    with_rpb: bool = True


def ours(window: Window) -> Contender:
    """This library, backend chosen by itself."""

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None) -> Tensor:
        out = windowed_attention(q, k, v, window, rpb=rpb)
        assert isinstance(out, Tensor)
        return out

    return Contender("visionattn", version("visionattn"), attend)


def peers(window: Window, size: tuple[int, int], device: torch.device) -> Iterator[Contender]:
    """Everything that can stand beside `ours` for this window, map and device."""
    torch_version = torch.__version__
    if window.boundary == "shift":
        yield Contender("gather", torch_version, gather(window, size, device))
    yield Contender("flex", torch_version, flex(window, size, device), backward=device.type == "cuda", with_rpb=False)
    yield Contender("sdpa-full", torch_version, full_attention, same_function=False, with_rpb=False)
    if window.boundary == "shift" and (attend := natten(window)) is not None:
        yield Contender("natten", version("natten"), attend, backward=device.type == "cuda", with_rpb=False)


def gather(window: Window, size: tuple[int, int], device: torch.device) -> Attention:
    """Neighborhood attention in plain torch: one gathered copy of the keys per query, no tiles."""
    (see_h, offset_h), (see_w, offset_w) = (a.visible(n) for a, n in zip(window.axes, size, strict=True))
    rows, columns = (see.nonzero()[:, 1].view(len(see), -1) for see in (see_h, see_w))  # [H, k_h], [W, k_w]
    index = (rows[:, None, :, None] * size[1] + columns[None, :, None, :]).flatten(2).flatten(0, 1).to(device)
    row_offset, column_offset = (o.gather(1, x) for o, x in ((offset_h, rows), (offset_w, columns)))
    bias_row = row_offset[:, None, :, None].to(device)
    bias_column = column_offset[None, :, None, :].to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None) -> Tensor:
        near_k, near_v = k.flatten(1, 2)[:, index], v.flatten(1, 2)[:, index]  # [B, L, keys, heads, dim]
        scores = torch.einsum("blhc,blkhc->blhk", q.flatten(1, 2) * q.shape[-1] ** -0.5, near_k)
        if rpb is not None:
            scores = scores + rpb[:, bias_row, bias_column].flatten(3).flatten(1, 2).transpose(0, 1)
        return torch.einsum("blhk,blkhc->blhc", scores.softmax(-1), near_v).view(*q.shape[:-1], -1)

    return attend


def flex(window: Window, size: tuple[int, int], device: torch.device) -> Attention:
    """Compiled `flex_attention` with a block mask of the window, built outside the measurement."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    see_h, see_w = (axis.visible(n)[0].to(device) for axis, n in zip(window.axes, size, strict=True))
    height, width = size

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return see_h[query // width, key // width] & see_w[query % width, key % width]

    length = height * width
    block_mask = create_block_mask(mask, None, None, length, length, device=device.type)
    torch.compiler.reset()  # a second map size would be compiled with dynamic shapes, which is slower
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None) -> Tensor:
        q, k, v = (x.flatten(1, 2).transpose(1, 2).contiguous() for x in (q, k, v))
        out = compiled(q, k, v, block_mask=block_mask)
        assert isinstance(out, Tensor)
        return out.transpose(1, 2).unflatten(1, size)

    return attend


def full_attention(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None) -> Tensor:
    """Attention over the whole map: more work, by the best kernel that torch has."""
    out = F.scaled_dot_product_attention(*(x.flatten(1, 2).transpose(1, 2).contiguous() for x in (q, k, v)))
    return out.transpose(1, 2).unflatten(1, q.shape[1:3])


def natten(window: Window) -> Attention | None:
    """NATTEN, or None where it is not installed."""
    try:
        from natten.functional import na2d
    except ImportError:
        return None

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None) -> Tensor:
        return na2d(q, k, v, window.kernel_size, stride=window.stride, dilation=window.dilation)

    return attend
