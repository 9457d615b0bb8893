"""Window semantics equal those of NATTEN on random problems; the backend of its kernels refuses all others."""

import random
import re

import pytest
import torch

import visionattn_kernels as vk
from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.attention import natten as backend
from visionattn_kernels.attention.problem import check_problem
from visionattn_kernels.testing import make_inputs

natten = pytest.importorskip("natten", reason="natten is not installed here")
CASES_PER_TEST = 150


def random_axis(rng: random.Random, longest: int) -> tuple[int, int, int, int, bool]:
    """Length, kernel, stride, dilation, causal, as NATTEN takes them: kernel >= 2, kernel * dilation <= length."""
    length = rng.randint(3, longest)
    kernel = rng.randint(2, length - 1)  # for whole axes NATTEN turns to full attention, which it lacks on CPUs
    return length, kernel, rng.randint(1, kernel), rng.randint(1, length // kernel), rng.random() < 0.3


def test_sequences() -> None:
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(CASES_PER_TEST):
        length, kernel, stride, dilation, causal = random_axis(rng, 40)
        q, k, v = torch.randn(3, 2, length, 2, 16, generator=generator)
        expected = natten.functional.na1d(q, k, v, kernel, stride=stride, dilation=dilation, is_causal=causal)
        ours = vk.neighborhood_attention_1d(q, k, v, kernel, stride, dilation, causal)
        case = f"L {length} k {kernel} s {stride} d {dilation} causal {causal}"
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4, msg=lambda text, case=case: f"{case}: {text}")


def test_maps() -> None:
    rng = random.Random(1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(CASES_PER_TEST):
        rows, columns = random_axis(rng, 14), random_axis(rng, 14)
        (height, width), *window = zip(rows, columns, strict=True)
        kernel, stride, dilation, causal = window
        q, k, v = torch.randn(3, 1, height, width, 2, 16, generator=generator)
        expected = natten.functional.na2d(q, k, v, kernel, stride=stride, dilation=dilation, is_causal=causal)
        ours = vk.neighborhood_attention_2d(q, k, v, kernel, stride, dilation, causal)
        case = f"{height}x{width} k {kernel} s {stride} d {dilation} causal {causal}"
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4, msg=lambda text, case=case: f"{case}: {text}")


SEQUENCE = Window.neighborhood((1, 3))


@pytest.mark.parametrize(
    ("window", "size", "options", "reason"),
    [
        (Window.neighborhood(3), (8, 8), {"rpb": True}, "it does not take rpb"),
        (Window.neighborhood(3), (8, 8), {"num_extra": 1}, "it does not take extra_k"),
        (Window.neighborhood(6, 4, boundary="mask"), (8, 8), {}, "boundary is 'mask'"),
        (Window.neighborhood(3, query_stride=2), (8, 8), {}, r"query_stride is \(2, 2\)"),
        (Window.neighborhood(5, dilation=2), (12, 9), {}, r"kernel_size \* dilation <= 9; got 5 and 2"),
        (Window.neighborhood((3, 1)), (8, 8), {}, "kernel_size must be >= 2"),
        (SEQUENCE, (2, 8), {}, "kernel_size must be >= 2"),
        (Window.neighborhood(3), (8, 8), {"scale": 0.0}, "takes a scale of 0 for none"),
        (Window.neighborhood(3), (8, 8), {"need_lse": True}, "drops the gradient of the log-sum-exp"),
        (Window.neighborhood(3), (8, 8), {}, "the maps are on cpu"),
        (SEQUENCE, (1, 8), {}, "the maps are on cpu"),
    ],
)
def test_can_run_gives_a_reason(window: Window, size: tuple[int, int], options: dict[str, object], reason: str) -> None:
    settings = {name: options[name] for name in ("scale", "need_lse") if name in options}
    x: dict[str, object] = {
        "rpb": None,
        **make_inputs(window, size, **{k: v for k, v in options.items() if k not in settings}),
    }  # type: ignore[arg-type]
    found = backend.can_run(check_problem(**x, window=window, **{"scale": None, **settings}))  # type: ignore[arg-type]
    assert found is not None
    assert re.search(reason, found)


def test_its_log_sum_exp_is_taken_where_no_gradient_is_asked_for() -> None:
    x = make_inputs(Window.neighborhood(3), (8, 8))
    with torch.no_grad():
        found = backend.can_run(check_problem(**x, window=Window.neighborhood(3), rpb=None, scale=None, need_lse=True))  # type: ignore[arg-type]
    assert found is not None
    assert "the maps are on cpu" in found


@pytest.mark.gpu
@pytest.mark.skipif(not natten.HAS_LIBNATTEN, reason="natten has no libnatten here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("window", "size"),
    [
        (Window.neighborhood(7), (14, 20)),
        (Window.neighborhood((5, 3), dilation=(2, 3)), (13, 11)),
        (Window.neighborhood(6, (6, 2)), (12, 10)),
        (Window.neighborhood(5, 5, is_causal=(False, True)), (12, 10)),
        (Window.neighborhood((1, 5), dilation=(1, 2)), (1, 17)),
        (Window.neighborhood(8), (8, 8)),
    ],
    ids=str,
)
def test_kernels_match_reference(window: Window, size: tuple[int, int], dtype: torch.dtype) -> None:
    inputs = make_inputs(window, size, head_dim=32, device="cuda")
    rounded = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.items()}
    results = {}
    for name in ("natten", "reference"):
        out = windowed_attention(**rounded, window=window, backend=name)  # type: ignore[arg-type]
        grad = torch.ones_like(out).cumsum(1)  # type: ignore[arg-type]
        results[name] = [out, *torch.autograd.grad(out, list(rounded.values()), grad)]  # type: ignore[arg-type]
    scale = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for ours, expected in zip(results["natten"], results["reference"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=scale, atol=scale * expected.abs().max().item())  # type: ignore[union-attr]
