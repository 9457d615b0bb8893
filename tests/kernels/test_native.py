"""The fused CPU kernels: tiles of every size, threads, narrower vectors, and machines without a compiler."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from visionattn_kernels import Window, explain, windowed_attention
from visionattn_kernels.backends import native
from visionattn_kernels.backends.native import build
from visionattn_kernels.testing import assert_matches_reference, make_inputs, run_with_gradients

needs_compiler = pytest.mark.skipif(isinstance(build.load(), str), reason=f"no kernels: {build.load()}")

# id: window, map
CASES = {
    "H23xW19-k7": (Window.create(7), (23, 19)),
    "H13xW20-k5x4-dil2x3": (Window.create((5, 4), dilation=(2, 3)), (13, 20)),
    "H14xW15-k6-s4x3": (Window.create(6, (4, 3)), (14, 15)),
    "H12xW13-k5-causal10": (Window.create(5, is_causal=(True, False)), (12, 13)),
    "mask-H21xW27-b8h3": (Window.create(14, 8, boundary="mask"), (21, 27)),
    "zero-H21xW27-b8h9": (Window.create(26, 8, boundary="zero"), (21, 27)),
    "zero-H17xW19-k7-dil2-r2": (Window.create(7, dilation=2, boundary="zero", query_stride=2), (17, 19)),
    "H1xW90-k33": (Window.create((1, 33)), (1, 90)),
}
all_cases = pytest.mark.parametrize(("window", "size"), CASES.values(), ids=CASES.keys())


@needs_compiler
@pytest.mark.parametrize("strip", [1, 3, 5, 8])
@all_cases
def test_tiles_of_any_size(window: Window, size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "STRIP", strip)
    monkeypatch.setattr(native, "PANEL_BYTES", 1)
    inputs = make_inputs(window, size, batch=1, head_dim=20, v_dim=36, rpb=True, rel=True, num_extra=2)
    assert_matches_reference(window, inputs, "native", torch.float32)


@pytest.fixture
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@needs_compiler
@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("batch", [1, 4])
def test_threads_that_share_a_head_sum_in_one_order(batch: int) -> None:
    window = Window.create(7)
    inputs = make_inputs(window, (20, 41), batch=batch, heads=1, rpb=True, num_extra=2, dtype=torch.float32)
    assert_matches_reference(window, inputs, "native", torch.float32)
    first = run_with_gradients(window, inputs, "native")
    for _ in range(3):
        for name, x in run_with_gradients(window, inputs, "native").items():
            assert torch.equal(x, first[name]), name


@needs_compiler
def test_no_copy_of_packed_projections_nor_of_wider_steps() -> None:
    """Heads, columns and rows at any distance, and a transposed map whose channels are not neighbours."""
    window = Window.create(3)
    x = torch.randn(2, 9, 8, 3, 2, 24, dtype=torch.float32)[:, :, :, :, :, :16]
    q, k, v = x.unbind(3)
    found = windowed_attention(q, k, v, window, backend="native")
    expected = windowed_attention(*(y.contiguous() for y in (q, k, v)), window, backend="reference")
    torch.testing.assert_close(found, expected)
    q, k, v = (y.transpose(3, 4).contiguous().transpose(3, 4) for y in (q, k, v))
    torch.testing.assert_close(windowed_attention(q, k, v, window, backend="native"), expected)


@needs_compiler
@pytest.mark.parametrize("largest", [1e-3, 30.0])
def test_softmax_of_any_range(largest: float) -> None:
    window = Window.create(5)
    x = make_inputs(window, (9, 9), dtype=torch.float32)
    x["q"] = (x["q"].detach() * largest).requires_grad_()
    assert_matches_reference(window, x, "native", torch.float32)


@needs_compiler
def test_scores_that_would_overflow_without_their_largest() -> None:
    x = make_inputs(Window.create(5), (9, 9), dtype=torch.float32)
    x["q"] = x["q"].detach() * 1e4
    found, expected = (
        windowed_attention(**x, window=Window.create(5), backend=name) for name in ("native", "reference")
    )  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_nan_is_not_swallowed() -> None:
    x = {name: t.detach() for name, t in make_inputs(Window.create(3), (9, 9), dtype=torch.float32).items()}
    x["k"][0, 4, 4, 0, 0] = torch.nan
    out = windowed_attention(**x, window=Window.create(3), backend="native")
    assert isinstance(out, torch.Tensor)
    assert out[0, 3:6, 3:6, 0].isnan().all()
    assert not out[1].isnan().any()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -mno-avx2 -mno-avx"])
def test_narrower_vectors(flags: str, tmp_path: Path) -> None:
    """The kernels of lesser processors, compiled apart and run in a process of their own."""
    compiler = f"{os.environ.get('CXX', 'c++')} {flags}"
    environment = {**os.environ, "CXX": compiler, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    tests = [f"{__file__}::test_tiles_of_any_size", str(Path(__file__).with_name("test_maps.py"))]
    subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], env=environment, check=True)
    assert list(tmp_path.glob("visionattn/native-*.so"))


def problem_line() -> str:
    x = make_inputs(Window.create(3), (5, 5), dtype=torch.float32)
    return next(line for line in explain(**x, window=Window.create(3)).splitlines() if line.startswith("native"))  # type: ignore[arg-type]


@pytest.fixture
def forget_kernels() -> Iterator[None]:
    build.load.cache_clear()
    yield
    build.load.cache_clear()


@pytest.mark.usefixtures("forget_kernels")
def test_without_a_compiler_another_backend_runs_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert "cannot run: it needs a C++ compiler ($CXX)" in problem_line()
    x = make_inputs(Window.create(3), (5, 5), dtype=torch.float32)
    windowed_attention(**x, window=Window.create(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="native: it needs a C\\+\\+ compiler"):
        windowed_attention(**x, window=Window.create(3), backend="native")  # type: ignore[arg-type]


@pytest.mark.usefixtures("forget_kernels")
def test_a_failed_compilation_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'attention.cpp:1: error: no luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert "could not compile it: attention.cpp:1: error: no luck" in problem_line()
    assert not list(tmp_path.glob("visionattn/*"))
