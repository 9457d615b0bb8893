"""The precision of the Triton kernels' float32 products: torch's switch, our variable, and what a device has."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from visionattn_kernels.attention.triton.precision import VARIABLE, product_precision

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _torch_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def on_rocm(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(gcnArchName=architecture))


@pytest.mark.parametrize(("switch", "expected"), [("none", "ieee"), ("ieee", "ieee"), ("tf32", "tf32")])
def test_precision_is_ieee_unless_torch_allows_tf32(switch: str, expected: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = switch
    assert product_precision(CUDA, torch.float32) == expected


@pytest.mark.parametrize("asked", ["ieee", "tf32", "tf32x3"])
def test_precision_variable_comes_before_the_switch(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    monkeypatch.setenv(VARIABLE, asked)
    assert product_precision(CUDA, torch.float32) == asked


def test_precision_variable_with_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "bf16")
    with pytest.raises(ValueError, match=r"^VISIONATTN_FP32_PRECISION must be one of ieee, tf32, tf32x3; got 'bf16'$"):
        product_precision(CUDA, torch.float32)


def test_precision_of_half_precision_depends_on_no_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the switch would compile the same kernel twice."""
    monkeypatch.setenv(VARIABLE, "tf32x3")
    assert product_precision(CUDA, torch.bfloat16) == product_precision(CUDA, torch.float16) == "ieee"


def test_precision_on_a_cpu_is_that_of_the_interpreter() -> None:
    assert product_precision(torch.device("cpu"), torch.float32) == "interpreted"


@pytest.mark.parametrize(
    ("architecture", "asked", "expected"),
    [
        ("gfx90a:sramecc+:xnack-", "tf32", "ieee"),
        ("gfx942:sramecc+:xnack-", "tf32", "tf32"),
        ("gfx942", "tf32x3", "ieee"),
        ("gfx1100", "tf32", "ieee"),
    ],
)
def test_precision_on_rocm_is_one_that_triton_compiles(
    architecture: str, asked: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_rocm(architecture, monkeypatch)
    monkeypatch.setenv(VARIABLE, asked)
    assert product_precision(CUDA, torch.float32) == expected
