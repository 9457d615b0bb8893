"""The mixer `ttt` from the equations of ViT³, image by image and head by head, with inner gradients by autograd."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 9**-0.5


def unit(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    return (x @ w1) * F.silu(x @ w2)


def step(w: Tensor, gradient: Tensor, dims: tuple[int, ...]) -> Tensor:
    return w - gradient / (1 + gradient.square().sum(dims, keepdim=True).sqrt())


def ttt(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Map `[B, H, W, dim]` to the same, with the weights of the mixer by their names."""
    _, heads, d, _ = w["w1"].shape
    height, width, dim = x.shape[1:]
    outputs = []
    for image in F.linear(x, w["qkv.weight"], w.get("qkv.bias")):
        q1, k1, v1, q2, k2, v2 = image.flatten(0, 1).split([dim, dim, dim, d, d, d], -1)
        parts = []
        for head in range(heads):
            q, k, v = (y[:, head * d : (head + 1) * d] for y in (q1, k1, v1))
            w1, w2 = w["w1"][0, head], w["w2"][0, head]
            loss = -SCALE * (unit(k, w1, w2) * v).sum(1).mean()
            g1, g2 = torch.autograd.grad(loss, (w1, w2), create_graph=True)
            parts.append(unit(q, step(w1, g1, (0,)), step(w2, g2, (0,))))
        q, k, v = (y.T.reshape(1, d, height, width) for y in (q2, k2, v2))
        loss = -SCALE * (F.conv2d(k, w["w3"], padding=1, groups=d) * v).mean((2, 3)).sum()
        (g3,) = torch.autograd.grad(loss, w["w3"], create_graph=True)
        mixed = F.conv2d(q, step(w["w3"], g3, (1, 2, 3)), padding=1, groups=d)
        parts.append(mixed[0].flatten(1).T)
        outputs.append(torch.cat(parts, -1).unflatten(0, (height, width)))
    return F.linear(torch.stack(outputs), w["proj.weight"], w["proj.bias"])
