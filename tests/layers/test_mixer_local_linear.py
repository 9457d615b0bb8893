"""Local linear attention: a dense solver, and what a linear regression gets right where a mean does not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.layers.dense_neighborhoods import (
    DIM,
    HEADS,
    join,
    moments,
    probabilities,
    random_map,
    random_module,
    split,
    with_gradients,
)
from tests.layers.test_mixers import each_size
from visionattn.layers.mixers import create_mixer
from visionattn.layers.mixers.local_linear import LocalLinearAttention2d, regress, solve
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn_kernels import Window, windowed_av, windowed_qk


def attend_densely(module: LocalLinearAttention2d, x: Tensor, dilation: int) -> Tensor:
    size = x.shape[1], x.shape[2]
    q, k, v = (split(part) for part in (x @ module.qkv.weight.T + module.qkv.bias).chunk(3, -1))
    k = k / (k.square().mean(-1, keepdim=True) + torch.finfo(k.dtype).eps).sqrt()
    p = probabilities(q, k, module.rpb, size, module.kernel_size, dilation)
    mean_k, mean_v, of_keys, of_values = moments(p, k, v)
    ridge = module.ridge.exp().log1p()[:, None, None, None] * torch.eye(k.shape[-1], dtype=k.dtype)
    solution = torch.linalg.solve(of_keys + ridge, mean_k - q)
    return join(mean_v - (of_values @ solution[..., None]).squeeze(-1), size, module.proj)


@pytest.mark.parametrize("dilation", [1, 2])
@each_size
def test_outputs_and_gradients_equal_a_dense_solver(size: tuple[int, int], dilation: int) -> None:
    module = random_module(LocalLinearAttention2d(DIM, HEADS, kernel_size=3, dilation=dilation, dtype=torch.float64))
    x = random_map(size)
    expected = with_gradients(attend_densely(module, x, dilation), module, x)
    for ours, theirs in zip(with_gradients(module(x), module, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_parameters_as_in_the_paper() -> None:
    module = create_mixer("local_linear", 32, 2, rel_pos_bias=False)
    assert sum(p.numel() for p in module.parameters()) == 4 * 32**2 + 4 * 32 + 2
    torch.testing.assert_close(F.softplus(module.ridge), torch.full((2,), 0.1))
    assert [create_mixer("local_linear", dim, 1).steps for dim in (4, 8, 32)] == [6, 10, 8]


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_below_one_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps must be at least 1; got {steps}"):
        create_mixer("local_linear", 8, 2, steps=steps)


def random_problem(d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Window]:
    """Return weights, queries and keys of a map of 9 x 8."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 9, 8, 2, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    window = Window.neighborhood(5)
    return windowed_qk(q, k, window, scale=d**-0.5).softmax(-1), q, k, window


def test_affine_values_are_recovered() -> None:
    weights, q, k, window = random_problem(4)
    slope, offset = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    ridge = torch.full((2,), 1e-12, dtype=torch.float64)
    v = k @ slope + offset
    out = regress(weights, q, k, v, window, ridge, steps=4)
    torch.testing.assert_close(out, q @ slope + offset, rtol=0, atol=1e-6)
    assert (windowed_av(weights, v, window) - out).abs().mean() > 0.3  # of softmax attention


def test_as_many_steps_as_channels_solve_the_system() -> None:
    generator = torch.Generator().manual_seed(0)
    root, b = (torch.randn(50, 8, n, generator=generator, dtype=torch.float64) for n in (20, 1))
    matrix = root @ root.mT / 20 + 0.1 * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, b).squeeze(-1)
    errors = [(solve(lambda x: (matrix @ x[..., None])[..., 0], b[..., 0], t) - expected).abs().max() for t in (4, 8)]
    assert errors[0] > 1e-3
    assert errors[1] < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_more_steps_than_needed_change_nothing(dtype: torch.dtype) -> None:
    weights, q, k, window = random_problem(4, dtype)
    ridge = torch.full((2,), 0.1, dtype=dtype)
    eight, forty = (regress(weights, q, k, k, window, ridge, steps) for steps in (8, 40))
    torch.testing.assert_close(eight, forty)


def test_float32_is_exact_to_its_rounding() -> None:
    """With as many steps as channels, 8, errors are a hundred times larger."""
    module = random_module(LocalLinearAttention2d(16, 2, kernel_size=7, dtype=torch.float64))
    module.ridge.data.fill_(-2.25)
    x = random_map((6, 7), 16).detach() / 3
    exact = module(x)
    error = (module.float()(x.float()) - exact).abs().max()
    assert error < 1e-5 * exact.abs().max()
    module.steps = 8
    assert (module(x.float()) - exact).abs().max() > 10 * error


def test_large_ridge_gives_softmax_attention() -> None:
    module = random_module(LocalLinearAttention2d(DIM, HEADS, kernel_size=3, dtype=torch.float64))
    module.ridge.data.fill_(1e12)
    plain = NeighborhoodAttention2d(DIM, HEADS, kernel_size=3, dtype=torch.float64)
    plain.load_state_dict({name: x for name, x in module.state_dict().items() if name != "ridge"})
    x = random_map((6, 7)).detach()
    q, k, v = plain.qkv(x).chunk(3, -1)
    k = F.rms_norm(k.unflatten(-1, (HEADS, -1)), (DIM // HEADS,)).flatten(-2)
    expected = plain.proj(plain.attend(torch.cat([q, k, v], -1)))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-9)


def test_float32_under_autocast() -> None:
    module = LocalLinearAttention2d(DIM, HEADS, kernel_size=3)
    packed = torch.randn(2, 5, 6, 3 * DIM)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module.attend(packed)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, module.attend(packed), rtol=0, atol=0)
    assert module.attend(packed.bfloat16()).dtype == torch.bfloat16
