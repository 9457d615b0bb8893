"""The choice of tiles for the Triton kernels, by estimate or by measurement. Launches and measurements are faked."""

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visionattn_kernels import Window
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton.plan import Tile
from visionattn_kernels.testing import assert_matches_reference, make_inputs

triton = pytest.importorskip("triton")

from tests.kernels.fake_launches import FAILURES, TILES, fail_if, fake_measure  # noqa: E402
from visionattn_kernels.attention.triton import cost, measuring, tile_cache, tuning  # noqa: E402


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True
    device = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OrderedDict[Any, Tile]:
    """Nothing is chosen yet, here or on disk; kernels are compiled."""
    tiles: OrderedDict[Any, Tile] = OrderedDict()
    monkeypatch.setattr(tuning, "_chosen", tiles)
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VISIONATTN_TUNE", raising=False)
    return tiles


@pytest.fixture
def gpu_is_there(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU by its properties, with tuning asked for."""
    gpu = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, capturing=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.capturing)
    monkeypatch.setenv("VISIONATTN_TUNE", "1")
    return gpu


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[Tile, float]:
    """What is measured, and how long it takes."""
    return fake_measure(monkeypatch)


@pytest.fixture
def matmul() -> Iterator[Any]:
    """The settings of matrix products, which are then restored."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    yield settings
    settings.fp32_precision = before


def problem_of(on_gpu: bool = False, **options: Any) -> Problem:
    window = Window.neighborhood(3)
    inputs = make_inputs(window, (4, 4), **{"dtype": torch.float32, **options})
    if on_gpu:
        inputs["q"] = inputs["q"].as_subclass(OnGpu)
    return Problem(**inputs, window=window, scale=1.0)


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_default_tile_is_the_first_that_runs(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    launched, launch = fail_if(lambda tile: tile.num_stages > 1, error)
    with caplog.at_level(logging.DEBUG):
        tuning.run("forward", problem_of(), launch)
    assert launched[-1].num_stages == 1
    assert len(launched) == len(caplog.records) + 1 > 1
    assert str(launched[0]) in caplog.text
    # A device that is too small is no reason for a warning; a compiler that fails is.
    level = logging.DEBUG if isinstance(error, triton.OutOfResources) else logging.WARNING
    assert {record.levelno for record in caplog.records} == {level}
    tuning.run("forward", problem_of(), launch)
    assert launched[-1] == launched[-2]


def test_error_if_no_tile_runs() -> None:
    launched, launch = fail_if(lambda tile: True, FAILURES[-1])
    with pytest.raises(RuntimeError, match=r"^forward kernel on cpu runs with none of \d+ tiles .*choose") as raised:
        tuning.run("forward", problem_of(), launch)
    assert raised.value.__cause__ is FAILURES[-1]
    assert "\n" not in str(raised.value)
    assert len(launched) == len(set(launched))


def test_other_errors_are_raised_at_once() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), triton.InterpreterError("no")):
        launched, launch = fail_if(lambda tile: True, error)
        with pytest.raises(type(error)):
            tuning.run("forward", problem_of(), launch)
        assert len(launched) == 1


def test_chosen_tile_that_no_longer_fits_is_chosen_anew() -> None:
    """A tile may take more of the device at other strides."""
    held: set[Tile] = set()
    launched, launch = fail_if(lambda tile: tile in held, FAILURES[0])
    tuning.run("forward", problem_of(), launch)
    held.add(launched[0])
    tuning.run("forward", problem_of(), launch)
    assert launched[:3] == [launched[0]] * 3
    assert launched[3] != launched[0]
    tuning.run("forward", problem_of(), launch)
    assert launched[4:] == [launched[3]]


def test_chosen_tiles_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch, chosen: OrderedDict[Any, Tile]) -> None:
    """The oldest choice is dropped and made again when its problem returns."""
    batches: list[int] = []

    def choose(kind: str, problem: Problem, launch: measuring.Launch) -> tuple[Tile, bool]:
        batches.append(len(problem.q))
        return TILES[0], True

    monkeypatch.setattr(tuning, "MAX_CHOSEN", 2)
    monkeypatch.setattr(tuning, "_choose", choose)
    for batch in (1, 2, 3, 2, 3, 1):
        tuning.run("forward", problem_of(batch=batch), lambda tile: None)
    assert batches == [1, 2, 3, 1]
    assert len(chosen) == 2


@pytest.mark.usefixtures("gpu_is_there", "measured")
def test_choice_depends_on_the_precision_of_float32(matmul: Any, chosen: OrderedDict[Any, Tile]) -> None:
    for precision in ("ieee", "tf32", "ieee"):
        matmul.fp32_precision = precision
        for dtype in (torch.float32, torch.bfloat16):
            tuning.run("forward", problem_of(on_gpu=True, dtype=dtype), lambda tile: None)
    assert len(chosen) == 3


@pytest.mark.usefixtures("gpu_is_there")
def test_measured_tiles_are_kept_on_disk(measured: dict[Tile, float], chosen: OrderedDict[Any, Tile]) -> None:
    launched, launch = fail_if(lambda tile: False, FAILURES[0])
    problem = problem_of(on_gpu=True)
    tuning.run("forward", problem, launch)
    best, number = list(measured)[-1], len(measured)
    assert number == tuning.MAX_MEASURED
    assert launched[-1] == best
    assert len({(tile.num_warps, math.prod(tile.query), math.prod(tile.key)) for tile in measured}) > number // 2
    chosen.clear()  # as in another process
    tuning.run("forward", problem, launch)
    assert launched[-1] == best
    assert len(measured) == number
    measured.clear()
    tuning.run("query", problem, launch)
    assert measured
    assert len(list(tile_cache.folder().iterdir())) == 2


@pytest.mark.usefixtures("gpu_is_there")
def test_best_tiles_by_prediction_are_measured(measured: dict[Tile, float]) -> None:
    """Of NAT's windows at 32 channels those are small ones of one warp."""
    for kind in ("forward", "query", "key"):
        measured.clear()
        window = Window.neighborhood(7)
        inputs = make_inputs(window, (56, 56), head_dim=32, dtype=torch.bfloat16, batch=1)
        inputs["q"] = inputs["q"].as_subclass(OnGpu)
        tuning.run(kind, Problem(**inputs, window=window, scale=1.0), lambda tile: None)
        areas = {(math.prod(tile.query), math.prod(tile.key)) for tile in measured if tile.num_warps == 1}
        assert {(32, 32), (16, 32), (32, 16)} & areas


def test_nothing_is_measured_during_capture(
    gpu_is_there: SimpleNamespace, measured: dict[Tile, float], chosen: OrderedDict[Any, Tile]
) -> None:
    problem, launched = problem_of(on_gpu=True), list[Tile]()
    gpu_is_there.capturing = True
    for _ in range(2):
        tuning.run("forward", problem, launched.append)
    assert len(launched) == 2
    assert launched[0] == launched[1] == tuning.default_tiles(*tuning._describe("forward", problem))[0]
    assert not measured
    assert not chosen
    gpu_is_there.capturing = False
    tuning.run("forward", problem, launched.append)
    assert measured
    gpu_is_there.capturing = True
    tuning.run("forward", problem, launched.append)
    assert launched[-1] == list(measured)[-1]


@pytest.mark.usefixtures("gpu_is_there")
def test_default_tile_if_nothing_could_be_measured(
    measured: dict[Tile, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONATTN_TUNE_SECONDS", "0")
    launched: list[Tile] = []
    problem = problem_of(on_gpu=True)
    tuning.run("forward", problem, launched.append)
    assert launched == [tuning.default_tiles(*tuning._describe("forward", problem))[0]]
    assert not measured
    assert not tile_cache.folder().exists()


@pytest.mark.usefixtures("gpu_is_there")
@pytest.mark.parametrize("seconds", ["soon", "-1", "inf", "nan"])
def test_seconds_must_be_a_number(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONATTN_TUNE_SECONDS", seconds)
    with pytest.raises(ValueError, match=f"VISIONATTN_TUNE_SECONDS must be .*; got '{seconds}'"):
        tuning.run("forward", problem_of(on_gpu=True), lambda tile: None)


def test_measured_tile_holds_for_device_versions_and_problem(
    gpu_is_there: SimpleNamespace, matmul: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(kind: str = "forward", **options: Any) -> dict[str, Any]:
        return tuning._name(kind, problem_of(on_gpu=True, **options))

    matmul.fp32_precision = "ieee"
    first = name()
    assert json.loads(json.dumps(first)) == first == name()
    others = [
        name("key"),
        name(dtype=torch.bfloat16),
        name(head_dim=16),
        name(v_dim=16),
        name(batch=5),
        name(rpb=True),
        name(rel=True),
        name(num_extra=3),
        name(num_extra=9),
    ]
    matmul.fp32_precision = "tf32"
    others.append(name())
    half = name(dtype=torch.bfloat16)
    matmul.fp32_precision = "ieee"
    assert half == name(dtype=torch.bfloat16)
    for owner, attribute, value in [
        (gpu_is_there, "name", "NVIDIA A100"),
        (gpu_is_there, "minor", 3),
        (torch, "__version__", "2.99.0"),
        (triton, "__version__", "3.99.0"),
        (tuning, "package_version", lambda package: "9.9"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, value)
            others.append(name())
    keys = [json.dumps(x) for x in (first, *others)]
    assert len(set(keys)) == len(keys)


@pytest.mark.usefixtures("gpu_is_there", "measured")
def test_folder_that_cannot_be_written_only_warns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "file"))
    launched: list[Tile] = []
    tuning.run("forward", problem_of(on_gpu=True), launched.append)
    assert launched
    assert "set VISIONATTN_CACHE to a folder that can be written" in caplog.text


@pytest.mark.usefixtures("gpu_is_there")
def test_measured_tile_that_no_longer_runs_is_replaced_by_a_default(caplog: pytest.LogCaptureFixture) -> None:
    problem = problem_of(on_gpu=True)
    kept = Tile((16, 16), (16, 16), 8, 3)
    tile_cache.store(tuning._name("forward", problem), kept, 1.0)
    launched, launch = fail_if(lambda tile: tile == kept, FAILURES[0])
    tuning.run("forward", problem, launch)
    assert launched == [kept, tuning.default_tiles(*tuning._describe("forward", problem))[0]]
    assert "does not run with its measured" in caplog.text


@pytest.mark.gpu
def test_gpu_tuning_keeps_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONATTN_TUNE", "1")
    monkeypatch.setenv("VISIONATTN_TUNE_SECONDS", "20")
    window = Window.neighborhood(7)
    options: dict[str, Any] = {"head_dim": 32, "rpb": True, "rel": True, "num_extra": 3, "device": "cuda"}
    assert_matches_reference(window, make_inputs(window, (20, 20), **options), "triton", torch.bfloat16)
    entries = [json.loads(file.read_text()) for file in tile_cache.folder().iterdir()]
    assert {entry["problem"]["kernel"] for entry in entries} == set(cost.COSTS)
