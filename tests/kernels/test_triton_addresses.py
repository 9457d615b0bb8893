"""Addresses in the Triton kernels: views of every layout, and offsets at the limits of 32 bits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreter import NOT_INTERPRETED, check_overflow
from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.testing import make_inputs

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from visionattn_kernels.attention.triton.maps import Map, as_map, load_vectors, store_vectors  # noqa: E402

pytestmark = pytest.mark.skipif(NOT_INTERPRETED is not None, reason=str(NOT_INTERPRETED))

WINDOW = Window.neighborhood(3)
LAST_OFFSETS = [2**31 - 1, 2**31, 2**31 + 8]
"""Offset of the last number of a map; 32 bits with a sign hold the first. The last vector begins 7 numbers before."""


@pytest.fixture(autouse=True)
def _overflow_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    check_overflow(monkeypatch, True)


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


SHAPES = {
    "batch": (2, 1, 1, 1),
    "rows": (1, 3, 1, 1),
    "columns": (1, 1, 3, 1),
    "both": (1, 2, 2, 1),
    "heads": (1, 1, 1, 2),
}
far_maps = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def far_map(memory: Tensor, shape: tuple[int, ...], last: int, number: int) -> Tensor:
    """Return random numbers, the last of which has this offset from the first, or one more.

    Three rows, or two rows and columns, have strides that 32 bits hold, while the last offset is their sum.

    Args:
        memory: To put them in.
        shape: With several entries on one axis or two, and at most 8 channels.
        last: Offset of the last number.
        number: Of the map, counted from 0; each has its own place.
    """
    first, *others = (i for i in range(4) if shape[i] > 1)
    strides, rest = [0, 0, 0, 0, 1], last - (shape[-1] - 1)
    for i in others:
        strides[i] = rest // 2 - 8
        rest -= strides[i]
    strides[first] = -(-rest // (shape[first] - 1))
    return memory.as_strided(shape, strides, 128 * number).normal_()


@far_maps
@pytest.mark.parametrize("last", [LAST_OFFSETS[0], LAST_OFFSETS[-1]])
def test_offset_at_the_limit_of_32_bits(shape: tuple[int, ...], last: int, memory: Tensor) -> None:
    names = {"q": 8, "k": 8, "v": 8, "rel_h": 5, "rel_w": 5, "grad": 8}
    x = {name: far_map(memory, (*shape, c), last, i) for i, (name, c) in enumerate(names.items())}
    results, grad, grad_lse = [], x.pop("grad"), torch.randn(shape)
    for given, backend in ((x, "triton"), ({name: t.contiguous() for name, t in x.items()}, "reference")):
        results.append(differentiate(given, grad, grad_lse, backend))
    for name, expected in results[1].items():
        torch.testing.assert_close(results[0][name], expected, rtol=1e-2, atol=1e-2, msg=name)


@triton.jit
def copy_map(source: Map, target: Map, rows: tl.tensor, columns: tl.tensor, heads: tl.tensor) -> None:
    """Copy a map of at most four rows and columns; a program has one head of one image."""
    position = tl.arange(0, 16)
    row, column, batch, head = position // 4, position % 4, tl.program_id(0) // heads, tl.program_id(0) % heads
    inside = (row < rows) & (column < columns)
    store_vectors(target, batch, head, row, column, inside, load_vectors(source, batch, head, row, column, inside))


@far_maps
@pytest.mark.parametrize("last", LAST_OFFSETS)
def test_store_at_the_limit_of_32_bits(shape: tuple[int, ...], last: int, memory: Tensor) -> None:
    """Results of the kernels are contiguous, and small in tests; so stores are tried alone."""
    batch, *sizes = shape
    source, target = torch.randn(*shape, 8).half(), far_map(memory, (*shape, 8), last, 6)
    copy_map[(batch * sizes[2],)](as_map(source), as_map(target), *sizes)
    assert torch.equal(source, target)
    back = torch.empty_like(source)
    copy_map[(batch * sizes[2],)](as_map(target), as_map(back), *sizes)
    assert torch.equal(source, back)
