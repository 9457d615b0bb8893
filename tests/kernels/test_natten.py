"""Window semantics equal those of NATTEN on random problems."""

import random

import pytest
import torch

import visionattn_kernels as vk

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
