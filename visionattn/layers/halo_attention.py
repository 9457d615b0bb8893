"""HaloNet's blocked local attention as a module."""

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, trunc_normal_
from torch import Tensor, nn

from visionattn_kernels import Window, halo_attention_2d


@register_notrace_function
def attend_halo(
    q: Tensor,
    kv: Tensor,
    height_rel: Tensor,
    width_rel: Tensor,
    num_heads: int,
    block_size: int,
    halo_size: int,
    query_stride: int,
    scale_rel_pos: bool,
    timm_compat: bool,
) -> Tensor:
    """Compute halo attention with decomposed relative position; opaque to FX, because it reads shapes.

    Args:
        q: Queries `[B, Q_h, Q_w, num_heads * head_dim]`, with `Q = ceil(H / query_stride)`.
        kv: Keys and values `[B, H, W, num_heads * (head_dim + value_dim)]`, a head's keys before its values.
        height_rel: Embedding of each row offset `[2 w - 1, head_dim]`, with `w = block_size + 2 halo_size`.
        width_rel: Embedding of each column offset.
        num_heads: Attention heads.
        block_size: Edge of a block of queries.
        halo_size: Keys seen on each side of a block.
        query_stride: Distance of neighbouring queries.
        scale_rel_pos: Whether relative logits are scaled as `q.k` is.
        timm_compat: Whether border and offsets are timm's, see `HaloAttention2d`.

    Returns:
        `[B, Q_h, Q_w, num_heads * value_dim]`.
    """
    q = q.unflatten(-1, (num_heads, -1))
    head_dim = q.shape[-1]
    k, v = kv.unflatten(-1, (num_heads, -1)).tensor_split([head_dim], -1)
    tables = [table * head_dim**-0.5 if scale_rel_pos else table for table in (height_rel, width_rel)]
    if timm_compat and query_stride > 1:
        rel_h, rel_w = (
            torch.einsum(rule, q, _tables_of_timm(table, n, block_size, halo_size, query_stride))
            for rule, table, n in zip(("bhwnd,hrd->bhwnr", "bhwnd,wrd->bhwnr"), tables, q.shape[1:3], strict=True)
        )
    else:
        if timm_compat:
            tables = [F.pad(table[halo_size:], (0, 0, 0, halo_size)) for table in tables]
        rel_h, rel_w = (q @ table.T for table in tables)
    out = halo_attention_2d(
        q,
        k,
        v,
        block_size,
        halo_size,
        boundary="zero" if timm_compat else "mask",
        query_stride=query_stride,
        rel_h=rel_h,
        rel_w=rel_w,
    )
    return out.flatten(-2)


def _tables_of_timm(table: Tensor, num_queries: int, block_size: int, halo_size: int, query_stride: int) -> Tensor:
    """Return the embeddings that timm gives each query, by our offsets, `[num_queries, 2 w - 1, head_dim]`.

    timm numbers both the keys of a window and the queries of its block from 0, whatever the distance of the queries.
    Query i of a block then stands `halo_size + (query_stride - 1) i` entries away from its true offset.
    """
    number = torch.arange(num_queries, device=table.device) % (block_size // query_stride)
    entry = torch.arange(len(table), device=table.device) + halo_size + (query_stride - 1) * number[:, None]
    return F.pad(table, (0, 0, 0, halo_size + block_size))[entry]  # what is padded is never read


def channels_last(x: Tensor) -> Tensor:
    """Return a map `[B, C, H, W]` in this memory format, by means that vmap also has."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@register_notrace_function
def in_format_of(x: Tensor, out: Tensor) -> Tensor:
    """Return `out`, which is channels-last, in the memory format of `x`."""
    # vmap cannot be asked for a memory format, but for whether a view is contiguous.
    return out if x.permute(0, 2, 3, 1).is_contiguous() else out.contiguous()


class RelativeTables(nn.Module):
    """Embeddings of row and column offsets, shared by all heads, under timm's names."""

    def __init__(
        self,
        lengths: tuple[int, int],
        head_dim: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build tables of so many row and column offsets."""
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(lengths[0], head_dim, device=device, dtype=dtype))
        self.width_rel = nn.Parameter(torch.empty(lengths[1], head_dim, device=device, dtype=dtype))
        for table in (self.height_rel, self.width_rel):
            trunc_normal_(table, std=head_dim**-0.5)


class HaloAttention2d(nn.Module):
    """Multi-head blocked local attention with a halo, NCHW maps of any size to the same (HaloNet, arXiv 2103.12731).

    A block of `block_size` squared queries sees the block and `halo_size` keys around it. Scores are `q.k + q.r`, where
    r is the sum of a row's and a column's embedding. There is no output projection. The output has the memory format of
    the input. With `stride` 2 every second query is computed, against keys of the whole map.

    The paper leaves open how scores are scaled: `q.k` is by `head_dim ** -0.5`, `q.r` if `scale_rel_pos`.

    With `timm_compat` the module is timm 1.0.31's `HaloAttn`, whose weights it loads as they are: zero vectors beyond
    the border take part in the softmax, offsets are counted in queries rather than positions where queries are strided,
    and a block that `stride` does not divide is averaged in place of strided, as it is with `avg_down`.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 8,
        head_dim: int | None = None,
        block_size: int = 8,
        halo_size: int = 3,
        stride: Literal[1, 2] = 1,
        qkv_bias: bool = False,
        avg_down: bool = False,
        scale_rel_pos: bool = False,
        timm_compat: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Channels of the input.
            dim_out: Channels of the values and the output; those of the input by default.
            num_heads: Attention heads.
            head_dim: Channels of a head's queries and keys; `dim // num_heads` by default.
            block_size: Edge of a block of queries.
            halo_size: Keys seen on each side of a block.
            stride: Distance of neighbouring outputs.
            qkv_bias: Whether projections have a bias.
            avg_down: Averages 2x2 outputs in place of skipping queries.
            scale_rel_pos: Whether relative logits are scaled as `q.k` is.
            timm_compat: Whether border and offsets are timm's.
            device: Device of the parameters.
            dtype: Type of the parameters.

        Raises:
            ValueError: An argument is out of its range.
        """
        super().__init__()
        dim_out = dim_out or dim
        for name, value in (("dim", dim), ("dim_out", dim_out)):
            if value % num_heads and not (name == "dim" and head_dim):
                raise ValueError(f"num_heads must divide {name}; got {name} {value} and num_heads {num_heads}")
        if block_size < 1 or halo_size < 0:
            raise ValueError(
                f"block_size must be at least 1 and halo_size at least 0; got {block_size} and {halo_size}"
            )
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2; got {stride}")
        head_dim = head_dim or dim // num_heads
        pooled = stride > 1 and (avg_down or (timm_compat and block_size % stride != 0))
        self.num_heads = num_heads
        self.block_size = block_size
        self.halo_size = halo_size
        self.query_stride = 1 if pooled else stride
        self.scale_rel_pos = scale_rel_pos
        self.timm_compat = timm_compat
        self.q = nn.Conv2d(dim, num_heads * head_dim, 1, self.query_stride, bias=qkv_bias, device=device, dtype=dtype)
        self.kv = nn.Conv2d(dim, num_heads * head_dim + dim_out, 1, bias=qkv_bias, device=device, dtype=dtype)
        length = 2 * (block_size + 2 * halo_size) - 1
        self.pos_embed: nn.Module = RelativeTables((length, length), head_dim, device, dtype)
        self.pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if pooled else nn.Identity()
        for conv in (self.q, self.kv):
            trunc_normal_(conv.weight, std=dim**-0.5)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries, and packed keys and values, of a map `[B, dim, H, W]`, as `attend_halo` takes them."""
        # In this format a convolution gives the heads-last maps of attention; on CPUs it is also twice as fast as a
        # linear layer.
        x = channels_last(x)
        return self.q(x).permute(0, 2, 3, 1), self.kv(x).permute(0, 2, 3, 1)

    def attend(self, q: Tensor, kv: Tensor) -> Tensor:
        """Compute attention `[B, Q_h, Q_w, dim_out]` of what `project` returns, before any pooling."""
        return attend_halo(
            q,
            kv,
            self.pos_embed.height_rel,
            self.pos_embed.width_rel,
            self.num_heads,
            self.block_size,
            self.halo_size,
            self.query_stride,
            self.scale_rel_pos,
            self.timm_compat,
        )

    def window(self) -> Window:
        """Return the rule of which keys a query sees."""
        boundary: Literal["mask", "zero"] = "zero" if self.timm_compat else "mask"
        return Window.halo(self.block_size, self.halo_size, boundary, self.query_stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, dim, H, W]` to `[B, dim_out, ceil(H / stride), ceil(W / stride)]`."""
        out = self.attend(*self.project(x)).permute(0, 3, 1, 2)
        return self.pool(in_format_of(x, out))

    def set_window(self, block_size: int, halo_size: int) -> None:
        """Change the window; the relative tables are interpolated linearly, ends to ends."""
        length = 2 * (block_size + 2 * halo_size) - 1
        self.block_size, self.halo_size = block_size, halo_size
        resize_tables(self.pos_embed, (length, length))


def resize_tables(tables: nn.Module, lengths: tuple[int, int]) -> None:
    """Interpolate the tables of `RelativeTables`, or of timm's module of the same names, to so many offsets."""
    for name, length in zip(("height_rel", "width_rel"), lengths, strict=True):
        table = getattr(tables, name)
        if len(table) != length:
            setattr(tables, name, nn.Parameter(resize_table(table.detach(), length), table.requires_grad))


def resize_table(table: Tensor, length: int) -> Tensor:
    """Interpolate relative embeddings `[L, head_dim]` linearly to `[length, head_dim]`, ends to ends."""
    if len(table) == length:
        return table
    resized = F.interpolate(table.float().T[None], size=length, mode="linear", align_corners=True)
    return resized[0].T.to(table.dtype).contiguous()
