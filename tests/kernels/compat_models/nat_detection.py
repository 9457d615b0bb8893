"""A NAT backbone as detectors of 2022 take it: one normalized map per level. It was written for NATTEN 0.14.

The names of its parameters are those of published detection checkpoints.
"""

import torch
from natten import NeighborhoodAttention2D as NeighborhoodAttention
from torch import nn


class ConvTokenizer(nn.Module):
    def __init__(self, in_chans, embed_dim):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, embed_dim // 2, kernel_size=3, stride=2, padding=1),
            nn.Conv2d(embed_dim // 2, embed_dim, kernel_size=3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x):
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ConvDownsampler(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x):
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Mlp(nn.Module):
    def __init__(self, dim, hidden_dim, drop):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class NATLayer(nn.Module):
    def __init__(self, dim, num_heads, kernel_size, dilation, mlp_ratio, qkv_bias, qk_scale, drop, attn_drop, gamma):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = NeighborhoodAttention(
            dim,
            kernel_size=kernel_size,
            dilation=dilation,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=drop,
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.layer_scale = gamma is not None
        if self.layer_scale:
            self.gamma1 = nn.Parameter(gamma * torch.ones(dim))
            self.gamma2 = nn.Parameter(gamma * torch.ones(dim))

    def forward(self, x):
        attended = self.attn(self.norm1(x))
        x = x + (self.gamma1 * attended if self.layer_scale else attended)
        hidden = self.mlp(self.norm2(x))
        return x + (self.gamma2 * hidden if self.layer_scale else hidden)


class NATBlock(nn.Module):
    def __init__(self, dim, depth, num_heads, kernel_size, dilations, downsample, **options):
        super().__init__()
        self.blocks = nn.ModuleList(
            NATLayer(dim, num_heads, kernel_size, None if dilations is None else dilations[i], **options)
            for i in range(depth)
        )
        self.downsample = ConvDownsampler(dim) if downsample else None

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return (x if self.downsample is None else self.downsample(x)), x


class NAT(nn.Module):
    def __init__(
        self,
        embed_dim,
        mlp_ratio,
        depths,
        num_heads,
        in_chans=3,
        kernel_size=7,
        dilations=None,
        out_indices=(0, 1, 2, 3),
        qkv_bias=True,
        qk_scale=None,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        frozen_stages=-1,
        layer_scale=None,
    ):
        super().__init__()
        self.out_indices, self.frozen_stages = out_indices, frozen_stages
        self.num_features = [embed_dim * 2**i for i in range(len(depths))]
        self.patch_embed = ConvTokenizer(in_chans, embed_dim)
        self.levels = nn.ModuleList(
            NATBlock(
                self.num_features[i],
                depth,
                num_heads[i],
                kernel_size,
                None if dilations is None else dilations[i],
                downsample=i + 1 < len(depths),
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                gamma=layer_scale,
            )
            for i, depth in enumerate(depths)
        )
        for i in out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(self.num_features[i]))
        self._freeze_stages()

    def _freeze_stages(self):
        if self.frozen_stages >= 0:
            self.patch_embed.eval().requires_grad_(False)
        for level in self.levels[: max(self.frozen_stages - 1, 0)]:
            level.eval().requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self._freeze_stages()
        return self

    def forward(self, x):
        x, outs = self.patch_embed(x), []
        for i, level in enumerate(self.levels):
            x, out = level(x)
            if i in self.out_indices:
                outs.append(getattr(self, f"norm{i}")(out).permute(0, 3, 1, 2).contiguous())
        return tuple(outs)
