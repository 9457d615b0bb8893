"""Numbers at which the Triton kernels could go wrong: head sizes, scales, biases that mask, NaN, partial gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

import visionattn_kernels as vk
from tests.kernels.interpreter import NOT_INTERPRETED
from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.testing import TINY, assert_matches_reference, make_inputs, run_with_gradients

pytestmark = pytest.mark.skipif(NOT_INTERPRETED is not None, reason=str(NOT_INTERPRETED))


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


SLIDING = Window.neighborhood(3)
MASKED = Window.neighborhood(3, boundary="mask")
ZERO = Window.halo(2, 1, "zero")


def biased(window: Window = MASKED, **options: Any) -> dict[str, Tensor]:
    settings: dict[str, Any] = {"batch": 1, "heads": 1, "rpb": True, "rel": True, "dtype": torch.float32, **options}
    return {name: x.detach() for name, x in make_inputs(window, (4, 5), **settings).items()}


@pytest.mark.parametrize("head_dim", [24, 256, *(slow(dim) for dim in (8, 48, 80, 96, 128))])
def test_head_dim_unlike_that_of_values(head_dim: int) -> None:
    inputs = make_inputs(SLIDING, (3, 4), batch=1, heads=1, head_dim=head_dim, v_dim=264 - head_dim, rpb=True)
    assert_matches_reference(SLIDING, inputs, "triton", torch.float32)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (0.0, torch.float32),
        (1e-12, torch.float32),
        *((-0.4, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    ],
    ids=str,
)
def test_scale_beside_every_bias(scale: float, dtype: torch.dtype) -> None:
    assert_matches_reference(ZERO, biased(ZERO, num_extra=2), "triton", dtype, scale)


@pytest.mark.parametrize("scale", [-1e-12, 1e6, slow(1e-30), slow(-1e12)])
def test_scale_far_from_one_beside_vectors_that_make_up_for_it(scale: float) -> None:
    """All scores are ordinary numbers."""
    inputs, factor = biased(ZERO, num_extra=2), abs(scale) ** -0.5
    for name in ("q", "k", "extra_k"):
        inputs[name] *= factor
    truth, ours = (
        run_with_gradients(ZERO, inputs, backend, dtype, scale=scale)
        for backend, dtype in (("reference", torch.float64), ("triton", torch.float32))
    )
    for name, expected in truth.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item(), msg=name)


LEAST = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("name", "value", "scale"),
    [
        ("rpb", -1e4, None),
        ("rpb", LEAST, None),
        ("rpb", -torch.inf, -0.4),
        ("rel_w", -torch.inf, None),
        ("rel_w", LEAST, -0.4),
        *(slow("rpb", value, None) for value in (-1e9, -1e30, -torch.inf)),
        *(slow(*others) for others in (("rpb", -torch.inf, 0.0), ("rel_w", -torch.inf, -0.4))),
    ],
)
def test_bias_that_masks_an_offset(name: str, value: float, scale: float | None) -> None:
    inputs = biased(num_extra=1)
    inputs[name][..., 1] = value
    assert_matches_reference(MASKED, inputs, "triton", torch.float32, scale)


@pytest.mark.parametrize("value", [-1e9, -torch.inf])
def test_bias_that_masks_all_but_the_query_itself(value: float) -> None:
    inputs = biased()
    own = inputs["rpb"][:, 2, 2].clone()
    inputs["rpb"].fill_(value)[:, 2, 2] = own
    out = windowed_attention(**inputs, window=MASKED, backend="triton")  # type: ignore[arg-type]
    torch.testing.assert_close(out, inputs["v"])


@pytest.mark.parametrize("value", [300.0, 1e4])
def test_large_bias_in_one_head(value: float) -> None:
    inputs = biased(heads=2)
    inputs["rpb"][1, 1:4, 2:] += value
    # Scores that are rounded in another order differ by units in the last place of the bias.
    assert_matches_reference(MASKED, inputs, "triton", torch.float32, slack=8)


@pytest.mark.parametrize("value", [-1e4, -1e28])
def test_query_whose_every_key_has_one_low_bias(value: float) -> None:
    """Softmax knows differences alone; beside such a number all others are rounded away."""
    inputs = biased()
    inputs["rel_h"][0, 1, 2] = value
    found, expected = (
        windowed_attention(**inputs, window=MASKED, backend=backend)  # type: ignore[arg-type]
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_gradients_beside_a_query_that_sees_extra_tokens_alone() -> None:
    inputs = biased(num_extra=1)
    inputs["rel_h"][0, 1, 2] = -torch.inf
    assert_matches_reference(MASKED, inputs, "triton", torch.float32)


PLACES = {
    "q": (0, 1, 2, 0, 3),
    "k": (0, 1, 2, 0, 3),
    "v": (0, 1, 2, 0, 3),
    "rpb": (0, 1, 2),
    "rel_h": (0, 1, 2, 0, 1),
    "rel_w": (0, 0, 0, 0, 0),  # an offset that this query does not see
    "extra_k": (0, 0, 0, 3),
    "extra_v": (0, 0, 0, 3),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, torch.nan) for name in PLACES),
        *((name, torch.inf) for name in ("q", "k", "v", "rpb")),
        ("k", -torch.inf),
    ],
)
def test_value_that_is_not_finite_reaches_what_it_reaches_in_the_reference(name: str, value: float) -> None:
    """Vectors that are finite in the reference are the same here; outputs that are not finite there are not here."""
    inputs = biased(num_extra=int(name.startswith("extra")))
    inputs[name][PLACES[name]] = value
    truth, ours = (run_with_gradients(MASKED, inputs, backend) for backend in ("reference", "triton"))
    for result, expected in truth.items():
        finite, kept = expected.isfinite(), ours[result].isfinite()
        if result not in ("lse", "grad_rpb"):  # one number that is not finite may spoil its vector
            finite, kept = finite.all(-1), kept.all(-1)
        torch.testing.assert_close(ours[result][finite], expected[finite], rtol=1e-4, atol=1e-5, msg=result)
        if result in ("out", "lse"):
            assert not kept[~finite].any(), f"what is not finite is lost in {result}"


@pytest.mark.parametrize("of", ["out", "lse"])
def test_gradient_of_one_result(of: str) -> None:
    inputs, grads = biased(num_extra=2), []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
        out, lse = windowed_attention(**leaves, window=MASKED, return_lse=True, backend=backend)  # type: ignore[arg-type]
        result = {"out": out, "lse": lse}[of]
        grads.append(torch.autograd.grad(result.cos().sum(), list(leaves.values()), materialize_grads=True))
    for name, found, expected in zip(inputs, *grads, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5, msg=name)


def test_gradient_of_some_tensors_only() -> None:
    inputs = biased(num_extra=2)
    everything = run_with_gradients(MASKED, inputs, "triton")
    for name in ("k", "rpb", "extra_v"):
        leaves = {**inputs, name: inputs[name].clone().requires_grad_()}
        out, lse = windowed_attention(**leaves, window=MASKED, return_lse=True, backend="triton")  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(1)  # the output gradients of run_with_gradients
        grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (out, lse)]
        (grad,) = torch.autograd.grad((out, lse), leaves[name], grads)
        assert torch.equal(grad.double(), everything[f"grad_{name}"]), name


@pytest.mark.parametrize(
    ("maps", "biases"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float64), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_gradients_of_biases_of_another_dtype(maps: torch.dtype, biases: torch.dtype) -> None:
    inputs = {name: x.to(biases if name.startswith("r") else maps) for name, x in biased(num_extra=2).items()}
    truth, ours = (run_with_gradients(MASKED, x, y) for x, y in (
        ({name: x.double() for name, x in inputs.items()}, "reference"), (inputs, "triton"))
    )  # fmt: skip
    for name, expected in truth.items():
        bound = 2 * max(TINY[maps], TINY[biases]) * max(1.0, expected.abs().max().item())
        assert (ours[name] - expected).abs().max().item() <= bound, name


def test_long_sequence() -> None:
    length, kernel, dilation = 400, 13, 2
    q, k, v = torch.randn(3, 1, length, 1, 8).unbind()
    rpb = torch.randn(1, 2 * kernel - 1)
    results = [
        vk.neighborhood_attention_1d(q, k, v, kernel, dilation=dilation, rpb=rpb, backend=backend)
        for backend in ("triton", "reference")
    ]
    torch.testing.assert_close(*results)


def test_empty_batch_has_empty_gradients_and_zeros_for_shared_tables() -> None:
    inputs = make_inputs(SLIDING, (3, 4), batch=0, rpb=True, rel=True, num_extra=3, dtype=torch.float32)
    results = run_with_gradients(SLIDING, inputs, "triton")
    assert {name: results[f"grad_{name}"].shape for name in inputs} == {name: x.shape for name, x in inputs.items()}
    assert not results["grad_rpb"].any()
