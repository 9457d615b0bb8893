"""The Triton kernels: at small sizes in the interpreter, and with `-m gpu` on a GPU in every dtype."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import visionattn_kernels as vk
from kernels.bench.report import read_rows
from tests.kernels.interpreter import NOT_INTERPRETED
from tests.kernels.reach import assert_reaches_who_sees
from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.attention import triton as backend
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.testing import (
    assert_matches_reference,
    make_inputs,
    run_with_gradients,
)

pytest.importorskip("triton")

from visionattn_kernels.attention.triton import maps, tuning

interpreted = pytest.mark.skipif(NOT_INTERPRETED is not None, reason=str(NOT_INTERPRETED))
half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)

# id: window, map, and what else the inputs hold; the interpreter takes about 10 ms per tile
CASES: dict[str, tuple[Window, tuple[int, int], dict[str, Any]]] = {
    "H9xW7-k3-d8": (Window.neighborhood(3), (9, 7), {}),
    "H9xW7-k4-d24-rpb-extra3": (Window.neighborhood(4), (9, 7), {"head_dim": 24, "rpb": True, "num_extra": 3}),
    "H9xW8-k5x3-dil2x3-rpb-rel": (Window.neighborhood((5, 3), dilation=(2, 3)), (9, 8), {"rpb": True, "rel": True}),
    "H12xW10-k5-d48-v16-rpb": (Window.neighborhood(5), (12, 10), {"head_dim": 48, "v_dim": 16, "rpb": True}),
    "H4xW4-k3-dil4-rpb": (Window.neighborhood(3, dilation=4), (4, 4), {"rpb": True}),
    "H12xW10-k6x5-s6x2-rpb": (Window.neighborhood((6, 5), (6, 2)), (12, 10), {"rpb": True}),
    "H9xW10-k5-s5-causal01-rel": (Window.neighborhood(5, 5, is_causal=(False, True)), (9, 10), {"rel": True}),
    "H5xW9-k4-dil1x2-causal11-rpb-extra1": (
        Window.neighborhood(4, dilation=(1, 2), is_causal=True),
        (5, 9),
        {"rpb": True, "num_extra": 1},
    ),
    "H4xW5-k7-larger-rpb-rel": (Window.neighborhood(7), (4, 5), {"rpb": True, "rel": True}),
    "H1xW40-k5-rpb": (Window.neighborhood((1, 5)), (1, 40), {"rpb": True}),
    "H17xW1-k5x1-dil3-rpb-rel": (Window.neighborhood((5, 1), dilation=(3, 1)), (17, 1), {"rpb": True, "rel": True}),
    "H1xW1-k7-rpb-rel": (Window.neighborhood(7), (1, 1), {"rpb": True, "rel": True}),
    "H18xW3-k9-d128": (Window.neighborhood(9), (18, 3), {"head_dim": 128}),
    "H5xW5-k3-d256-v8": (Window.neighborhood(3), (5, 5), {"heads": 1, "head_dim": 256, "v_dim": 8}),
    "mask-H16xW12-b8h3-rel": (Window.halo(8, 3), (16, 12), {"rel": True, "head_dim": 16}),
    "mask-H7xW8-k5-dil2x1-rpb-extra20": (
        Window.neighborhood(5, dilation=(2, 1), boundary="mask"),
        (7, 8),
        {"rpb": True, "num_extra": 20},
    ),
    "mask-H3xW5-k16-s10-rel": (Window.halo(10, 3), (3, 5), {"rel": True}),
    "zero-H12xW9-b8h3-rel-extra1": (
        Window.halo(8, 3, "zero"),
        (12, 9),
        {"rel": True, "num_extra": 1},
    ),
    "zero-H7xW6-k4-dil2-rpb": (Window.neighborhood(4, dilation=2, boundary="zero"), (7, 6), {"rpb": True}),
    "mask-H12xW16-b8h3-r2-rel": (Window.halo(8, 3, query_stride=2), (12, 16), {"rel": True}),
    "zero-H11xW9-b4h1-r2x3-rpb": (
        Window.halo(4, 1, "zero", query_stride=(2, 3)),
        (11, 9),
        {"rpb": True},
    ),
    "shift-H9xW8-k5-dil2x3-r2-rpb": (Window.neighborhood(5, dilation=(2, 3), query_stride=2), (9, 8), {"rpb": True}),
    "B0-H6xW6-k3-rpb-rel": (Window.neighborhood(3), (6, 6), {"batch": 0, "rpb": True, "rel": True}),
}
FEW = {name: CASES[name] for name in [*list(CASES)[1:3], "zero-H12xW9-b8h3-rel-extra1"]}


def over(cases: dict[str, tuple[Window, tuple[int, int], dict[str, Any]]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("window", "size", "options"), cases.values(), ids=cases.keys())


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of 16 queries and 16 keys, so that a small map has many."""
    monkeypatch.setattr(tuning, "AREAS", ((16, 16),))
    monkeypatch.setattr(tuning, "_chosen", {})
    tuning.default_tiles.cache_clear()
    yield
    tuning.default_tiles.cache_clear()


def inputs_for(window: Window, size: tuple[int, int], options: dict[str, Any], **more: Any) -> dict[str, Tensor]:
    return make_inputs(window, size, **{"batch": 1, **options, **more})


@interpreted
@over(CASES)
def test_kernels_match_reference(window: Window, size: tuple[int, int], options: dict[str, Any]) -> None:
    assert_matches_reference(window, inputs_for(window, size, options), "triton", torch.float32)


@interpreted
@half
@over(FEW)
def test_half_precision_matches_reference(
    window: Window, size: tuple[int, int], options: dict[str, Any], dtype: torch.dtype
) -> None:
    assert_matches_reference(window, inputs_for(window, size, options), "triton", dtype)


@interpreted
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("window", "size", "options"),
    [
        (Window.neighborhood(7), (11, 10), {"rpb": True, "rel": True, "num_extra": 17}),
        (Window.halo(4, 1, "zero"), (9, 7), {"batch": 2, "rel": True, "rpb": True}),
    ],
    ids=["shift", "zero"],
)
def test_many_tiles_match_reference(window: Window, size: tuple[int, int], options: dict[str, Any]) -> None:
    assert_matches_reference(window, inputs_for(window, size, options, heads=1), "triton", torch.float32)


@interpreted
@pytest.mark.parametrize("name", ["q", "k", "v", "grad"])
def test_nan_reaches_only_queries_that_see_it(name: str) -> None:
    window = Window.neighborhood(3, 2, boundary="mask")
    inputs = make_inputs(window, (4, 5), batch=1, heads=1, rpb=True, rel=name == "k", dtype=torch.float32)
    assert_reaches_who_sees(window, inputs, "triton", name)


@interpreted
def test_very_low_scores_beside_extra_keys() -> None:
    """A block of extra keys is filled up with zeros, whose weights would be infinite here."""
    window = Window.neighborhood(3)
    x = make_inputs(window, (3, 3), batch=1, heads=1, rpb=True, num_extra=1, dtype=torch.float32)
    x["rpb"].data.fill_(-200)
    x["q"].data.fill_(1)
    x["extra_k"].data.fill_(-100)
    assert all(result.isfinite().all() for result in run_with_gradients(window, x, "triton").values())


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills what torch leaves uninitialised with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@interpreted
def test_packed_projections_are_read_in_place() -> None:
    """q, k and v as slices of one tensor, and an output gradient that is one number repeated."""
    window = Window.neighborhood(3)
    packed = torch.randn(2, 5, 6, 3, 2, 8, requires_grad=True)
    q, k, v = packed.unbind(3)
    assert maps.as_map(k).data.data_ptr() == k.data_ptr()
    grads = []
    for name in ("triton", "reference"):
        out = windowed_attention(q, k, v, window, backend=name)
        assert isinstance(out, Tensor)
        grads.append(torch.autograd.grad(out.sum(), packed, retain_graph=True)[0])
    torch.testing.assert_close(*grads)


@interpreted
def test_compiles_without_graph_breaks() -> None:
    x = make_inputs(Window.neighborhood(3), (5, 5), batch=1, dtype=torch.float32, rpb=True)

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> Tensor:
        out = vk.neighborhood_attention_2d(q, k, v, 3, rpb=rpb, backend="triton")
        assert isinstance(out, Tensor)
        return out

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*x.values()), attend(*x.values()))


@interpreted
def test_zero_extra_tokens_equal_none() -> None:
    window = Window.neighborhood(3)
    x = make_inputs(window, (4, 4), batch=1, dtype=torch.float32)
    extra = torch.zeros(1, 0, 2, 8, requires_grad=True)
    out = windowed_attention(**x, window=window, extra_k=extra, extra_v=extra, backend="triton")  # type: ignore[arg-type]
    torch.testing.assert_close(out, windowed_attention(**x, window=window, backend="triton"))  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(out.sum(), extra)  # type: ignore[union-attr]
    assert grad.shape == extra.shape


def problem_of(**options: Any) -> Problem:
    window = Window.neighborhood(3)
    return Problem(**make_inputs(window, (4, 4), **options), window=window, scale=1.0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": torch.float64}, "dtype torch.float64 is not one of torch.float16, torch.bfloat16, torch.float32"),
        ({"dtype": torch.float32, "head_dim": 257}, "head_dim 257 exceeds 256"),
        ({"dtype": torch.float32, "v_dim": 300}, "head_dim 300 exceeds 256"),
        ({"dtype": torch.float32, "device": "meta"}, "device meta is not cuda"),
    ],
)
def test_can_run_gives_a_reason(options: dict[str, Any], reason: str) -> None:
    assert backend.can_run(problem_of(**options)) == reason


def test_cpu_problem_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(dtype=torch.float32)
    monkeypatch.setattr(backend, "INTERPRETED", False)
    assert "TRITON_INTERPRET=1 is not set" in str(backend.can_run(problem))
    monkeypatch.setattr(backend, "TRITON_INSTALLED", False)
    assert backend.can_run(problem) == "triton is not installed"


def run_python(*arguments: str) -> str:
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command, root = [sys.executable, *arguments], Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_imports_without_triton() -> None:
    program = """
        import sys
        sys.modules["triton"] = None
        import torch, visionattn_kernels
        q = torch.ones(1, 3, 3, 1, 8)
        print(visionattn_kernels.explain(q, q, q, visionattn_kernels.Window.neighborhood(3)))
    """
    assert "triton: cannot run: triton is not installed" in run_python("-c", textwrap.dedent(program))


@pytest.mark.parametrize(("arch", "dtype"), [("sm_80", "float32"), ("sm_90", "bfloat16")])
def test_kernels_compile_for_gpus(arch: str, dtype: str, tmp_path: Path) -> None:
    """No GPU is needed for that; what the interpreter takes, the compiler may refuse."""
    options = ["--only", "every-bias", "--arch", arch, "--dtype", dtype, "--precision", "tf32"]
    run_python("-m", "kernels.bench.compile_report", *options, "--output", str(tmp_path / "compile.csv"))
    rows = read_rows(tmp_path / "compile.csv")
    assert {row["kernel"] for row in rows} == {"attend", "by_query", "by_key", "by_offset", "by_token"}
    assert not [row["error"] for row in rows if row["error"]]
    assert not {row["kernel"]: row["stack"] for row in rows if int(row["stack"]) > 1024}
    assert all("MMA" in row["core"] for row in rows)


gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@over(CASES | {"H40xW40-k7-d48-rpb": (Window.neighborhood(7), (40, 40), {"head_dim": 48, "rpb": True, "rel": True})})
def test_gpu_matches_reference(
    window: Window, size: tuple[int, int], options: dict[str, Any], dtype: torch.dtype
) -> None:
    assert_matches_reference(window, inputs_for(window, size, options, device="cuda"), "triton", dtype)


@gpu
def test_gpu_tf32_follows_the_switch() -> None:
    window = Window.neighborhood(7)
    x = make_inputs(window, (20, 20), head_dim=64, dtype=torch.float32, device="cuda")
    truth = run_with_gradients(window, x, "reference", torch.float64)["out"]
    before, errors = torch.backends.cuda.matmul.fp32_precision, {}
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        errors[precision] = (run_with_gradients(window, x, "triton")["out"] - truth).abs().max().item()
    torch.backends.cuda.matmul.fp32_precision = before
    assert errors["ieee"] < 1e-5 < errors["tf32"] < 1e-2


@gpu
@pytest.mark.usefixtures("poisoned_memory")
def test_gpu_bitwise_repeatable() -> None:
    window = Window.neighborhood(7)
    x = make_inputs(window, (60, 50), batch=4, head_dim=32, rpb=True, rel=True, num_extra=5, dtype=torch.bfloat16)
    x = {name: t.detach().cuda().requires_grad_() for name, t in x.items()}
    first, second = (run_with_gradients(window, x, "triton") for _ in range(2))
    for name, result in first.items():
        assert result.isfinite().all(), name
        assert torch.equal(result, second[name]), name


@gpu
def test_gpu_maps_of_more_than_two_to_the_31_numbers() -> None:
    """The last rows of a map of 2.4e9 numbers are those of a map of these rows alone."""
    window, height, kept = Window.neighborhood(3), 2400, 6
    q = torch.randn(1, height, 1000, 8, 128, dtype=torch.bfloat16, device="cuda")
    assert q.numel() > 2**31
    out = windowed_attention(q, q, q, window, backend="triton")
    alone = windowed_attention(*[q[:, -kept:].contiguous()] * 3, window, backend="triton")
    assert isinstance(out, Tensor)
    assert isinstance(alone, Tensor)
    torch.testing.assert_close(out[:, 2 - kept :], alone[:, 2 - kept :])


@gpu
def test_gpu_memory_is_linear_in_the_map() -> None:
    window, peaks = Window.neighborhood(7), []
    for width in (128, 256):
        x = make_inputs(window, (128, width), batch=1, head_dim=32, rpb=True, dtype=torch.bfloat16, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        out = windowed_attention(**x, window=window, backend="triton")  # type: ignore[arg-type]
        torch.autograd.grad(out.sum(), list(x.values()))  # type: ignore[union-attr]
        peaks.append(torch.cuda.max_memory_allocated() - start)
        del x, out
    assert peaks[1] < 2.2 * peaks[0]
