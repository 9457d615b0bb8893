"""Neighborhood attention over time, and over instruments and time, as a music-structure model takes it.

It was written for the functions of NATTEN 0.14. Layers attend twice, with two dilations; a map that is shorter than a
window is padded first.
"""

import math

import torch
from natten.functional import natten1dav, natten1dqkrpb, natten2dav, natten2dqkrpb
from torch import nn


class NeighborhoodAttention(nn.Module):
    """Attention of `[batch, *size, dim]`; subclasses name NATTEN's pair of functions."""

    axes: int

    def __init__(self, dim, num_heads, kernel_size, dilation, dropout=0.0):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.kernel_size, self.dilation = kernel_size, dilation
        self.rpb = nn.Parameter(torch.zeros(num_heads, *[2 * kernel_size - 1] * self.axes))
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def split_heads(self, x):
        x = x.view(*x.shape[:-1], self.num_heads, self.head_dim)
        return x.permute(0, -2, *range(1, self.axes + 1), -1)

    def forward(self, hidden):
        query, key, value = (self.split_heads(layer(hidden)) for layer in (self.query, self.key, self.value))
        context = self.attend(query / math.sqrt(self.head_dim), key, value)
        context = context.permute(0, *range(2, self.axes + 2), 1, -1).contiguous()
        return context.view(*context.shape[:-2], self.num_heads * self.head_dim)

    def attend(self, query, key, value):
        scores = self.nattendqkrpb(query, key, self.rpb, self.kernel_size, self.dilation)
        probs = self.dropout(scores.softmax(dim=-1))
        return self.nattendav(probs, value, self.kernel_size, self.dilation)


class NeighborhoodAttention1d(NeighborhoodAttention):
    axes = 1

    def nattendqkrpb(self, *args):
        return natten1dqkrpb(*args)

    def nattendav(self, *args):
        return natten1dav(*args)


class NeighborhoodAttention2d(NeighborhoodAttention):
    axes = 2

    def nattendqkrpb(self, *args):
        return natten2dqkrpb(*args)

    def nattendav(self, *args):
        return natten2dav(*args)


class DinatLayer(nn.Module):
    """Two attentions side by side, of `dilation` and `dilation / 2`, then an MLP; both are residual."""

    def __init__(self, attention, dim, num_heads, kernel_size, dilation, mlp_ratio=3.0, dropout=0.0):
        super().__init__()
        self.window = kernel_size * dilation
        self.layernorm_before = nn.LayerNorm(dim)
        self.attentions = nn.ModuleList(
            attention(dim, num_heads, kernel_size, d, dropout) for d in (dilation, max(dilation // 2, 1))
        )
        self.merge = nn.Linear(2 * dim, dim)
        self.layernorm_after = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, int(dim * mlp_ratio)), nn.GELU(), nn.Linear(int(dim * mlp_ratio), dim))

    def forward(self, hidden):
        size = hidden.shape[1:-1]
        normed = self.layernorm_before(hidden)
        missing = [max(0, self.window - length) for length in size]
        padded = nn.functional.pad(normed, (0, 0, *(side for count in reversed(missing) for side in (0, count))))
        context = torch.cat([attention(padded) for attention in self.attentions], dim=-1)
        for axis, length in enumerate(size, start=1):
            context = context.narrow(axis, 0, length)
        hidden = hidden + self.merge(context)
        return hidden + self.mlp(self.layernorm_after(hidden))


class MusicStructure(nn.Module):
    """Map features `[batch, instruments, time, bands]` to logits `[batch, time, num_labels]`."""

    def __init__(self, bands=20, dim=16, depth=4, num_heads=2, kernel_size=5, num_labels=3):
        super().__init__()
        self.embed = nn.Linear(bands, dim)
        options = {"dim": dim, "num_heads": num_heads, "kernel_size": kernel_size}
        self.over_time = nn.ModuleList(
            DinatLayer(NeighborhoodAttention1d, dilation=2**i, **options) for i in range(depth)
        )
        self.over_instruments = nn.ModuleList(
            DinatLayer(NeighborhoodAttention2d, dilation=1, **options) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_labels)

    def forward(self, x):
        hidden = self.embed(x)
        batch, instruments = hidden.shape[:2]
        for in_time, across in zip(self.over_time, self.over_instruments, strict=True):
            hidden = in_time(hidden.flatten(0, 1)).unflatten(0, (batch, instruments))
            hidden = across(hidden)
        return self.head(self.norm(hidden.mean(1)))
