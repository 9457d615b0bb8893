"""Queries without a key: no window has one, and biases of minus infinity hide all keys of a query from it alone."""

from itertools import product

import pytest
import torch

from tests.kernels.interpreter import NOT_INTERPRETED
from visionattn_kernels import Window, windowed_attention
from visionattn_kernels._native.build import unavailable
from visionattn_kernels.testing import make_inputs
from visionattn_kernels.window import BOUNDARIES, AxisWindow

BACKENDS = ["reference", "plain", "gemm", "tiled"]
BACKENDS += [] if unavailable("attention") else ["native"]
BACKENDS += [] if NOT_INTERPRETED else ["triton"]


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_query_sees_its_own_key(is_causal: bool, boundary: str) -> None:
    for kernel, stride, dilation, query_stride in product(range(1, 8), range(1, 8), (1, 2, 3), (1, 2, 3)):
        axis = AxisWindow(kernel, stride, dilation, is_causal, boundary, query_stride)  # type: ignore[arg-type]
        if stride > kernel:
            continue  # `Window` refuses it
        for length in (1, 2, 5, 11):
            _, index, group_length = axis.groups(length)
            start, stop = axis.interval(index, group_length)
            assert bool(((start <= index) & (index < stop)).all()), (axis, length)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extra", [0, 1])
def test_biases_of_minus_infinity_hide_keys_from_one_query(extra: int, backend: str) -> None:
    """Without any other key its output is NaN; extra keys have no bias, and all its weight is then theirs."""
    window, where = Window.neighborhood(3), (0, 1, 2, 0)
    x = make_inputs(window, (4, 5), batch=1, rel=True, num_extra=extra, dtype=torch.float32)
    x = {name: t.detach() for name, t in x.items()}
    expected = windowed_attention(**x, window=window, backend="reference")
    x["rel_h"][where] = -torch.inf
    out = windowed_attention(**x, window=window, backend=backend)
    assert isinstance(out, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    if extra:
        torch.testing.assert_close(out[where], x["extra_v"][0, 0, 0])
    else:
        assert out[where].isnan().all()
    out[where] = expected[where]
    torch.testing.assert_close(out, expected)
