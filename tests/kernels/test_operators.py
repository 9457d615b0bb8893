"""Every registered operator passes `torch.library.opcheck`, with mixed dtypes and maps that are not contiguous."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreter import NOT_INTERPRETED
from visionattn_kernels import Window
from visionattn_kernels._native.build import unavailable
from visionattn_kernels.attention.problem import TENSORS
from visionattn_kernels.hyper import maps  # noqa: F401  defines operators
from visionattn_kernels.operators import OPERATORS
from visionattn_kernels.testing import make_inputs

WINDOW, SIZE = Window.neighborhood(3), (4, 5)
PURE_TORCH = {"tiled_attention", "tiled_attention_backward", "window_qk", "window_av", "window_atx"}
WITHOUT_GRADIENT = {"convolve_maps", "column_moments", "standardize_columns"}


def strided(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers whose last two axes are swapped in memory and have gaps."""
    *lead, rows, columns = shape
    return torch.randn(*lead, columns, rows + 1, dtype=dtype)[..., :rows].mT


def attention_arguments(mixed: bool) -> list[object]:
    """With `mixed` every optional tensor too: bfloat16 maps, extra keys of one projection, and a float32 table."""
    dtype = torch.bfloat16 if mixed else torch.float32
    x = make_inputs(WINDOW, SIZE, batch=1, rpb=mixed, rel=mixed, num_extra=2 * mixed)
    tensors = {name: strided(*t.shape, dtype=dtype) for name, t in x.items()}
    if mixed:
        tensors["rpb"] = torch.randn(x["rpb"].shape)
        tensors["extra_k"], tensors["extra_v"] = torch.randn(1, 2, 2, 2, 8, dtype=dtype).unbind(2)
    return [*(tensors.get(name) for name in TENSORS), WINDOW.to_ints(), 0.3]


def backward_arguments(mixed: bool) -> list[object]:
    arguments = attention_arguments(mixed)
    out, lse = torch.ops.visionattn.tiled_attention(*arguments)
    return [strided(*out.shape, dtype=out.dtype), torch.randn_like(lse) if mixed else None, out, lse, *arguments]


def parallax_arguments(mixed: bool) -> list[object]:
    q, k, v, rpb, *_, window, scale = attention_arguments(mixed)
    assert isinstance(q, Tensor)
    return [q, k, v, strided(*q.shape, dtype=q.dtype), rpb, window, scale]


def parallax_backward_arguments(mixed: bool) -> list[object]:
    arguments = parallax_arguments(mixed)
    out, lse = torch.ops.visionattn.parallax_attention(*arguments)
    return [strided(*out.shape, dtype=out.dtype), lse, *arguments]


def product_arguments(channels: int) -> Callable[[bool], list[object]]:
    def arguments(mixed: bool) -> list[object]:
        shapes = ((1, *SIZE, 2, channels), (1, *SIZE, 2, 8))
        dtype = torch.bfloat16 if mixed else torch.float32
        return [*(strided(*shape, dtype=dtype) for shape in shapes), WINDOW.to_ints(), list(SIZE)]

    return arguments


def multiscale_arguments(mixed: bool) -> list[object]:
    dtype = torch.bfloat16 if mixed else torch.float32
    rpb = torch.randn(2, 2, 3, 3) if mixed else None
    return [*(strided(1, *SIZE, 2, channels, dtype=dtype) for channels in (8, 8, 5)), rpb, [1, 2], 3, 0.3]


def multiscale_backward_arguments(mixed: bool) -> list[object]:
    dtype = torch.bfloat16 if mixed else torch.float32
    grads = strided(1, *SIZE, 2, 5, dtype=dtype), torch.randn(1, *SIZE, 2) if mixed else None
    return [*grads, *multiscale_arguments(mixed)]


ARGUMENTS: dict[str, Callable[[bool], list[object]]] = {
    **{f"{name}_attention": attention_arguments for name in ("native", "tiled", "triton")},
    **{f"{name}_attention_backward": backward_arguments for name in ("native", "tiled", "triton")},
    "parallax_attention": parallax_arguments,
    "parallax_attention_backward": parallax_backward_arguments,
    "window_qk": product_arguments(8),
    "window_av": product_arguments(9),
    "window_atx": product_arguments(9),
    "multiscale_attention": multiscale_arguments,
    "multiscale_attention_backward": multiscale_backward_arguments,
    "multiply_stacked": lambda _: [strided(4, 3, 5), strided(3, 2, 5)],
    "correlate_stacked": lambda _: [strided(4, 3, 5), strided(3, 3, 5), 1, 1],
    "correlate_taps": lambda _: [strided(4, 3, 5), strided(4, 3, 5), [3, 3], 1, 1],
    "convolve_maps": lambda mixed: [
        [strided(6, 4), strided(6, 3)],
        [strided(2, 4), strided(2, 3)],
        torch.randn(4)[::2],
        "product" if mixed else "sum",
    ],
    "column_moments": lambda _: [strided(6, 4)],
    "standardize_columns": lambda mixed: [
        strided(6, 4),
        *torch.rand(2, 4),
        torch.rand(6) if mixed else None,
        mixed,
        torch.empty(6, 4),
    ],
}


def test_arguments_cover_every_operator() -> None:
    assert set(ARGUMENTS) == set(OPERATORS)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_opcheck_of_every_operator(name: str, mixed: bool) -> None:
    if name.startswith("triton") and NOT_INTERPRETED:
        pytest.skip(NOT_INTERPRETED)
    if not name.startswith("triton") and name not in PURE_TORCH and unavailable("attention") is not None:
        pytest.skip(f"no kernels: {unavailable('attention')}")
    arguments = ARGUMENTS[name](mixed)
    if not name.endswith("backward") and name not in WITHOUT_GRADIENT:
        for x in arguments:
            if isinstance(x, Tensor):
                x.requires_grad_()
    torch.library.opcheck(OPERATORS[name], tuple(arguments))
