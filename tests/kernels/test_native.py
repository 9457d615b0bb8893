"""The fused CPU kernels: tiles of every size, threads, narrower vectors, and machines without a compiler."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch

from visionattn_kernels import (
    Window,
    explain,
    multiscale_attention_2d,
    parallax_attention_2d,
    windowed_attention,
)
from visionattn_kernels._native import build
from visionattn_kernels.testing import (
    Granted,
    assert_is_granted,
    assert_matches_reference,
    grant,
    make_inputs,
    run_with_gradients,
)
from visionattn_kernels.window import tiles

missing = build.unavailable("attention")
needs_compiler = pytest.mark.skipif(missing is not None, reason=f"no kernels: {missing}")

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


@lru_cache(maxsize=1)  # of the case that each strip meets in turn
def inputs_and_granted(case: str) -> tuple[Window, dict[str, torch.Tensor], Granted]:
    window, size = CASES[case]
    inputs = make_inputs(window, size, batch=1, head_dim=20, v_dim=36, rpb=True, rel=True, num_extra=2)
    return window, inputs, grant(window, inputs, torch.float32)


@needs_compiler
@pytest.mark.parametrize("strip", [1, 3, 5, 8])
@pytest.mark.parametrize("case", CASES)
def test_tiles_of_any_size(case: str, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "STRIP", strip)
    monkeypatch.setattr(tiles, "PANEL_BYTES", 1)
    window, inputs, granted = inputs_and_granted(case)
    assert_is_granted(window, inputs, "native", granted, torch.float32)


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
    others = (str(Path(__file__).with_name(f"test_{name}.py")) for name in ("maps", "multiscale"))
    tests = [f"{__file__}::test_tiles_of_any_size", *others]
    subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], env=environment, check=True)
    assert list(tmp_path.glob("visionattn/native-*.so"))


def problem_line() -> str:
    x = make_inputs(Window.create(3), (5, 5), dtype=torch.float32)
    return next(line for line in explain(**x, window=Window.create(3)).splitlines() if line.startswith("native"))  # type: ignore[arg-type]


@pytest.fixture
def forget_kernels() -> Iterator[None]:
    build._load.cache_clear()
    yield
    build._load.cache_clear()


@needs_compiler
@pytest.mark.usefixtures("forget_kernels")
def test_an_operator_compiles_its_own_unit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], build._try_to_load
    monkeypatch.setattr(build, "_try_to_load", lambda unit, compiler: loaded.append(unit) or load(unit, compiler))
    q = torch.randn(1, 4, 4, 1, 4)
    windowed_attention(q, q, q, Window.create(3))
    assert loaded == ["attention"]
    multiscale_attention_2d(q, q, q, [1])
    parallax_attention_2d(q, q, q, q, Window.create(3))
    assert loaded == ["attention", "multiscale", "parallax"]


@pytest.mark.usefixtures("forget_kernels")
def test_without_a_compiler_another_backend_runs_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    slow = r"compiled CPU kernels are missing \(it needs a C\+\+ compiler .*\): .* is 2 to 5 times slower"
    with pytest.warns(UserWarning, match=slow):
        windowed_attention(**make_inputs(Window.create(3), (5, 5)), window=Window.create(3))  # type: ignore[arg-type]
    with warnings.catch_warnings(action="error"):  # once is enough
        windowed_attention(**make_inputs(Window.create(3), (5, 5)), window=Window.create(3))  # type: ignore[arg-type]
    assert "cannot run: it needs a C++ compiler ($CXX)" in problem_line()
    x = make_inputs(Window.create(3), (5, 5), dtype=torch.float32)
    with pytest.raises(ValueError, match="native: it needs a C\\+\\+ compiler"):
        windowed_attention(**x, window=Window.create(3), backend="native")  # type: ignore[arg-type]


@pytest.mark.usefixtures("forget_kernels")
def test_without_a_home_another_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without an entry in passwd, as in containers."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.warns(UserWarning, match=r"it needs \$TORCH_EXTENSIONS_DIR or a home directory"):
        windowed_attention(**make_inputs(Window.create(3), (5, 5)), window=Window.create(3))  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.usefixtures("forget_kernels")
@pytest.mark.parametrize("size", [0, 60_000, -1])
def test_kernels_cut_short_are_compiled_again(size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system's loader would end the process, without a word, by a bus error."""
    path, compiled = build._place("attention", "c++"), []
    whole = path.read_bytes()
    cut = tmp_path / path.name
    cut.write_bytes(whole[:size])

    def compile_again(unit: str, compiler: str, path: Path) -> None:
        compiled.append(path)
        path.unlink()
        path.write_bytes(whole)

    monkeypatch.setattr(build, "_place", lambda *_: cut)
    monkeypatch.setattr(build, "_compile", compile_again)
    assert build.unavailable("attention") is None
    build._load.cache_clear()
    assert build.unavailable("attention") is None
    assert compiled == [cut]


@needs_compiler
@pytest.mark.usefixtures("forget_kernels")
def test_kernels_of_another_interface_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "ABI", (build.ABI[0] + 1, build.ABI[1]))
    with pytest.warns(UserWarning, match=r"has ABI \(1, \d+\) in place of \(2, \d+\): delete it"):
        assert build.unavailable("attention")
    with pytest.raises(RuntimeError, match=r"kernels are missing: .* has ABI"):
        build.library("attention")


@needs_compiler
@pytest.mark.usefixtures("forget_kernels")
def test_kernels_are_compiled_by_one_process_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another process, here another thread, finds the kernels that the first one compiled."""
    whole, compiled = build._place("attention", "c++").read_bytes(), []

    def compile_slowly(unit: str, compiler: str, path: Path) -> None:
        compiled.append(path)
        time.sleep(0.2)
        path.write_bytes(whole)

    monkeypatch.setattr(build, "_place", lambda *_: tmp_path / "new" / "native.so")
    monkeypatch.setattr(build, "_compile", compile_slowly)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(build._try_to_load, ["attention"] * 3, ["c++"] * 3))
    assert len(compiled) == 1
    assert not [x for x in found if isinstance(x, str)]


def run_in_child(call: Callable[[], object]) -> int | None:
    """The status of a child made by fork that calls something; None if it hangs."""
    child = os.fork()
    if not child:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (ended := os.waitpid(child, os.WNOHANG)) != (0, 0):
            return os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@needs_fork
@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_compiler), "tiled"])
def test_a_forked_child_does_not_wait_for_threads_of_its_parent(backend: str) -> None:
    x = [torch.randn(2, 28, 28, 4, 32) for _ in range(3)]
    attend = partial(windowed_attention, *x, Window.create(7), backend=backend)
    attend()
    assert run_in_child(attend) == 0


@needs_fork
@needs_compiler
def test_memory_without_room_for_a_window_is_an_error() -> None:
    """An exception of C++ would end the process without a word."""

    def attend() -> None:
        import resource  # of POSIX alone

        q = torch.randn(1, 8, 8, 1, 8)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 26, 1 << 26))
        with pytest.raises(RuntimeError, match="can't allocate memory for the keys of a window of"):
            windowed_attention(q, q, q, Window.create(2000, boundary="zero"), backend="native")

    assert run_in_child(attend) == 0


@pytest.mark.usefixtures("forget_kernels")
def test_a_failed_compilation_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'attention.cpp:1: error: no luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with pytest.warns(UserWarning, match="could not compile it: attention.cpp:1: error: no luck"):
        assert "could not compile it: attention.cpp:1: error: no luck" in problem_line()
    assert not list(tmp_path.glob("visionattn/*.so"))
