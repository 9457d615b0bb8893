"""Addresses in the Triton kernels: views of every layout, and offsets at the limits of 32 bits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreter import NOT_INTERPRETED
from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.testing import make_inputs

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from visionattn_kernels.attention.triton.maps import Map, as_map, load_vectors, store_vectors  # noqa: E402

pytestmark = pytest.mark.skipif(NOT_INTERPRETED is not None, reason=str(NOT_INTERPRETED))

WINDOW = Window.neighborhood(3)
LAST_OFFSETS = [2**31 - 2, 2**31 - 1, 2**31, 2**31 + 8]
"""Offset of the last number of a map; 32 bits with a sign hold the first two."""


def differentiate(inputs: dict[str, Tensor], grad: Tensor, grad_lse: Tensor, backend: str) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    out, lse = windowed_attention(**leaves, window=WINDOW, return_lse=True, backend=backend)  # type: ignore[arg-type]
    grads = torch.autograd.grad((out, lse), list(leaves.values()), (grad, grad_lse))
    return {"out": out, "lse": lse, **dict(zip(leaves, grads, strict=True))}


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads-first": lambda x: x.transpose(1, -2).contiguous().transpose(1, -2),
    "columns-first": lambda x: x.transpose(1, -3).contiguous().transpose(1, -3),
    "channels-first": lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
    "every-second": lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, -2)[:, ::2, ..., ::2, :],
    "unaligned": lambda x: torch.cat([x, x[..., :1]], -1)[..., 1:],
    "one-image": lambda x: x[:1].expand(x.shape),
    "one-row": lambda x: x[:, :1].expand(x.shape),
    "one-head": lambda x: x[..., :1, :].expand(x.shape),
    "one-vector": lambda x: x[:1, :1, ..., :1, :].expand(x.shape),
}


@pytest.mark.parametrize("turn", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, len(VIEWS)))])
def test_views_equal_their_copies(turn: int) -> None:
    """Each tensor has another layout, and yet another one in each turn; results are compared bit by bit."""
    x = make_inputs(WINDOW, (2, 2), rel=True, num_extra=2, head_dim=6, dtype=torch.float32)
    tensors = {name: t.detach() for name, t in x.items()}
    tensors |= {"grad": torch.randn(2, 2, 2, 2, 6), "grad_lse": torch.randn(2, 2, 2, 2, 1)}
    names = [*VIEWS, *VIEWS][turn:]
    viewed = {name: VIEWS[view](t) for (name, t), view in zip(tensors.items(), names, strict=False)}
    results = []
    for given in (viewed, {name: t.contiguous() for name, t in viewed.items()}):
        grad, grad_lse = given.pop("grad"), given.pop("grad_lse")[..., 0]
        results.append(differentiate(given, grad, grad_lse, "triton"))
    for name, expected in results[1].items():
        assert torch.equal(results[0][name], expected), name


@pytest.fixture(scope="module")
def memory() -> Tensor:
    """More than 2^31 numbers, nearly none of which is ever touched, and so there."""
    return torch.empty(2**31 + 4096, dtype=torch.float16)


def far_map(memory: Tensor, shape: list[int], axis: int, last: int, number: int) -> Tensor:
    """Return random numbers, the last of which has this offset from the first by the stride of one axis.

    Args:
        memory: To put them in.
        shape: Up to two entries on each axis, and at most 8 channels.
        axis: Whose stride is large: 0 to 3.
        last: Offset of the last number.
        number: Of the map, counted from 0; each has its own place.
    """
    strides = [64, 32, 16, 8]
    near = sum((n - 1) * x for i, (n, x) in enumerate(zip(shape, strides, strict=False)) if i != axis)
    strides[axis] = last - near - (shape[-1] - 1)
    return memory.as_strided(shape, (*strides, 1), 128 * number).normal_()


AXES = pytest.mark.parametrize("axis", range(4), ids=["batch", "row", "column", "head"])


@AXES
@pytest.mark.parametrize("last", LAST_OFFSETS[1:3])
def test_offset_at_the_limit_of_32_bits(axis: int, last: int, memory: Tensor) -> None:
    shape = [1, 1, 1, 1]
    shape[axis] = 2
    names = {"q": 8, "k": 8, "v": 8, "rel_h": 5, "rel_w": 5, "grad": 8}
    x = {name: far_map(memory, [*shape, c], axis, last, i) for i, (name, c) in enumerate(names.items())}
    results, grad, grad_lse = [], x.pop("grad"), torch.randn(shape)
    for given, backend in ((x, "triton"), ({name: t.contiguous() for name, t in x.items()}, "reference")):
        results.append(differentiate(given, grad, grad_lse, backend))
    for name, expected in results[1].items():
        torch.testing.assert_close(results[0][name], expected, rtol=1e-2, atol=1e-2, msg=name)


@triton.jit
def copy_corners(source: Map, target: Map) -> None:
    """Copy the vectors of a map of two entries on each axis."""
    position = tl.arange(0, 4)
    row, column, batch, head = position // 2, position % 2, tl.program_id(0) // 2, tl.program_id(0) % 2
    vectors = load_vectors(source, batch, head, row, column, row < 2)
    store_vectors(target, batch, head, row, column, row < 2, vectors)


@AXES
@pytest.mark.parametrize("last", LAST_OFFSETS)
def test_result_at_the_limit_of_32_bits(axis: int, last: int, memory: Tensor) -> None:
    """Results of a launch are contiguous and small in tests; so the store alone is tried."""
    source, target = torch.randn(2, 2, 2, 2, 8).half(), far_map(memory, [2, 2, 2, 2, 8], axis, last, 6)
    copy_corners[(4,)](as_map(source), as_map(target))
    assert torch.equal(source, target)
    back = torch.empty_like(source)
    copy_corners[(4,)](as_map(target), as_map(back))
    assert torch.equal(source, back)
