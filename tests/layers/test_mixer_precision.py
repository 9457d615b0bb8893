"""Every mixer in low precision against its dense reference in the same precision."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.layers import (
    test_mixer_blocks,
    test_mixer_core,
    test_mixer_linear,
    test_mixer_local_linear,
    test_mixer_parallax,
    test_mixer_power,
    test_mixer_routing,
)
from tests.layers.dense_neighborhoods import DIM, HEADS, join, probabilities, split
from tests.layers.ttt_reference import ttt
from visionattn.layers.mixers import MIXERS, create_mixer

SIZE = (9, 10)


def full(module: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (split(part) for part in F.linear(x, module.qkv.weight, module.qkv.bias).chunk(3, -1))
    return join((q.shape[-1] ** -0.5 * q @ k.mT).softmax(-1) @ v, SIZE, module.proj)


def neighborhood(module: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (split(part) for part in F.linear(x, module.qkv.weight, module.qkv.bias).chunk(3, -1))
    return join(probabilities(q, k, module.rpb, SIZE, 3, 1) @ v, SIZE, module.proj)


DENSE: dict[str, Callable[..., Tensor]] = {
    "neighborhood": neighborhood,
    "full": full,
    "core": test_mixer_core.attend_densely,
    "power": lambda module, x: test_mixer_power.attend_densely(module, x, lambda head: [0, 1, 2, 3]),
    "parallax": lambda module, x: test_mixer_parallax.attend_densely(module, x, 1),
    "local_linear": lambda module, x: test_mixer_local_linear.attend_densely(module, x, 1),
    "taylor": lambda module, x: test_mixer_linear.dense("taylor", module, x),
    "elu": lambda module, x: test_mixer_linear.dense("elu", module, x),
    "routing": lambda module, x: test_mixer_routing.dense(module, x)[0],
    "ttt": lambda module, x: ttt(dict(module.named_parameters()), x),
    "blocks": lambda module, x: torch.stack([test_mixer_blocks.dense(module, y).view_as(y) for y in x]),
}
OPTIONS = {"routing": {"num_clusters": 1}}  # rounding moves positions from cluster to cluster


def with_gradient(compute: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Return the output and the gradient of the input."""
    x = x.detach().requires_grad_()
    out = compute(x)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    return [out.double(), torch.autograd.grad(out, x, upstream)[0].double()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("name", MIXERS)
def test_errors_are_at_most_twice_those_of_the_reference(name: str, precision: str) -> None:
    generator = torch.Generator().manual_seed(0)
    mixer = create_mixer(name, DIM, HEADS, defaults={"kernel_size": 3}, **OPTIONS.get(name, {}))
    for parameter in mixer.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, *SIZE, DIM, generator=generator)
    low = torch.float32 if precision == "float32" else torch.bfloat16
    if precision == "bfloat16":
        mixer, x = mixer.to(low), x.to(low)
    exact_mixer, low_mixer = copy.deepcopy(mixer).double(), copy.deepcopy(mixer).to(low)

    with torch.autocast("cpu", enabled=precision == "autocast"):
        found = with_gradient(mixer, x)
    exact = with_gradient(lambda x: DENSE[name](exact_mixer, x), x.double())
    if name == "local_linear" and low == torch.bfloat16:
        references = exact  # torch has no solver in this precision
    else:
        references = with_gradient(lambda x: DENSE[name](low_mixer, x), x.to(low))
    for ours, reference, value in zip(found, references, exact, strict=True):
        bound = 2 * (reference - value).abs().max() + torch.finfo(low).eps * value.abs().max()
        assert (ours - value).abs().max() <= bound
