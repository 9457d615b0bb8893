"""Routing attention: some heads see a neighborhood, the others the positions of the same cluster."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module, trunc_normal_
from torch import Tensor, nn

from visionattn.layers.heads import check_heads, check_positive
from visionattn.layers.neighborhood_attention import KernelSize, attend_neighborhood
from visionattn.layers.online_clusters import OnlineClusters
from visionattn.layers.pointwise import MapLinear
from visionattn_kernels import Window


@register_notrace_module
class RoutingAttention2d(nn.Module):
    """Multi-head attention whose heads are shared out between a neighborhood and clusters of similar positions.

    Routing Transformer (arXiv 2003.05997). A head of the second kind has one projection x for queries and keys, with
    a LayerNorm without parameters, d channels, and c centroids μ:

        cluster i = the w positions with the largest x·μ_i,  w = ⌈N / c⌉ · overlap, at most N
        out_i = softmax(x_i x_iᵀ / √d) v_i within cluster i
        out = mean of out_i over the clusters that a position is in; 0 if it is in none

    Per routing head it costs 2 c w² = 2 overlap² N² / c products of d channels, and c N for the similarities: of the
    order N √N at c = √N. Centroids follow the keys by online k-means in training, see `OnlineClusters`. Routing heads
    do not see where positions are: a permutation of the positions permutes their outputs.

    Shared queries and keys, clusters of a fixed size, and online k-means are those of the authors' code for images. Our
    choices are these. The map is two-dimensional and nothing is masked. Clusters are twice as large as equal shares,
    which would leave about a quarter of the positions of a random map in no cluster. Outputs are divided by the number
    of clusters that a position is in, not by that number + 0.01. Centroids start in orthogonal directions around their
    mean, which cover as many positions of a random map as trained ones, and each with the weight of one key, not of
    none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: KernelSize = 7,
        dilation: int | None = 1,
        local_heads: int | None = None,
        num_clusters: int = 16,
        overlap: int = 2,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module.

        Args:
            dim: Channels.
            num_heads: Attention heads; must divide `dim`.
            kernel_size: Keys per query and axis of the local heads, or one number per axis.
            dilation: Distance of neighbouring keys of the local heads; None for the largest that fits the map.
            local_heads: Heads with neighborhood attention, the first ones; by default half of the heads.
            num_clusters: Clusters per routing head, about the square root of the number of positions: 16 for 16x16.
            overlap: Size of a cluster, in equal shares of the positions. A larger one leaves fewer positions in no
                cluster: a training logs the share of the others as `routing_coverage`.
            qkv_bias: Whether the projection to queries, keys and values has a bias.
            rel_pos_bias: Whether local heads learn a relative positional bias.
            proj_drop: Dropout after the output projection.
            device: Device of the parameters.
            dtype: Type of the parameters; centroids are at least float32.

        Raises:
            ValueError: `num_heads` does not divide `dim`, or an option is out of its range.
        """
        super().__init__()
        check_heads(dim, num_heads)
        local_heads = num_heads // 2 if local_heads is None else local_heads
        if local_heads not in range(num_heads):
            raise ValueError(
                f"local_heads must leave a routing head: at least 0 and below num_heads, {num_heads}; got {local_heads}"
            )
        check_positive(num_clusters=num_clusters, overlap=overlap)
        head_dim = dim // num_heads
        self.num_heads, self.head_dim, self.local_heads, self.overlap = num_heads, head_dim, local_heads, overlap
        self.kernel_size = Window.neighborhood(kernel_size).kernel_size
        self.dilation = dilation
        self.num_clusters = num_clusters
        routing_heads = num_heads - local_heads
        self.widths = 3 * local_heads * head_dim, 2 * routing_heads * head_dim
        self.qkv = MapLinear(dim, sum(self.widths), bias=qkv_bias, device=device, dtype=dtype)
        table = (local_heads, *(2 * k - 1 for k in self.kernel_size))
        self.rpb = (
            nn.Parameter(torch.empty(table, device=device, dtype=dtype)) if rel_pos_bias and local_heads else None
        )
        self.clusters = OnlineClusters(routing_heads, num_clusters, head_dim, device=device, dtype=dtype)
        self.proj = MapLinear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        if self.rpb is not None:
            trunc_normal_(self.rpb, std=0.02)

    def route(self, kv: Tensor) -> Tensor:
        """Compute attention within clusters, `[B, H, W, routing dim]`.

        Args:
            kv: Keys, which are the queries, and values `[B, H, W, 2 * routing dim]`, channels ordered (2, head, d).
        """
        keys, values = kv.flatten(1, 2).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        keys = F.layer_norm(keys.to(self.clusters.totals.dtype), keys.shape[-1:])  # [B, heads, N, d]
        share = -(-keys.shape[2] // self.num_clusters)
        members = self.clusters(keys, min(share * self.overlap, keys.shape[2]))
        out = attend_clusters(keys.to(values.dtype), values, members)
        return out.transpose(1, 2).flatten(-2).unflatten(1, kv.shape[1:3])

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, dim]` to the same."""
        local, routed = self.qkv(x).split(self.widths, -1)
        out = self.route(routed)
        if self.local_heads:
            near = attend_neighborhood(local, self.rpb, self.local_heads, self.kernel_size, self.dilation)
            out = torch.cat([near, out], -1)
        return self.proj_drop(self.proj(out))


def attend_clusters(keys: Tensor, values: Tensor, members: Tensor) -> Tensor:
    """Compute attention within each cluster, and average it over the clusters that a position is in.

    Args:
        keys: `[B, heads, N, d]`; they are the queries.
        values: `[B, heads, N, d]`.
        members: Positions in each cluster `[B, heads, clusters, size]`.

    Returns:
        `[B, heads, N, d]`; zeros for a position in no cluster.
    """
    where = members.flatten(2)[..., None]  # [B, heads, clusters * size, 1]
    rows = where.expand(-1, -1, -1, keys.shape[-1])
    k, v = (x.gather(2, rows).unflatten(2, members.shape[2:]).flatten(0, 1) for x in (keys, values))
    out = F.scaled_dot_product_attention(k, k, v)  # [B * heads, clusters, size, d]
    total = torch.zeros_like(values).scatter_add(2, rows, out.reshape(rows.shape))
    count = torch.zeros_like(values[..., :1], dtype=where.dtype).scatter_add(2, where, torch.ones_like(where))
    return total / count.clamp(min=1)
