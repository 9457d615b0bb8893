"""Tiles of the Triton kernels: choice, measurement in bounded time, files that keep them. Launches are faked."""

import ast
import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visionattn_kernels import Window
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton import plan
from visionattn_kernels.attention.triton.plan import Tile
from visionattn_kernels.testing import assert_matches_reference, make_inputs

triton = pytest.importorskip("triton")

from triton.runtime.errors import PTXASError  # noqa: E402

from visionattn_kernels.attention.triton import cost, measuring, tile_cache, tuning  # noqa: E402

FAILURES = [
    triton.OutOfResources(300_000, 200_000, "shared memory"),
    triton.CompilationError("source", ast.parse("x"), "no"),
    PTXASError("no"),
    RuntimeError("PassManager::run failed\nat line 3"),
]
TILES = [Tile((4, 4), (4, 4), warps, 2) for warps in (1, 2, 4, 8)]


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
    """Each candidate takes less time than the one before; what was measured."""
    times: dict[Tile, float] = {}

    def measure(launch: measuring.Launch, tile: Tile) -> float:
        times[tile] = 1 / (1 + len(times))
        return times[tile]

    monkeypatch.setattr(measuring, "measure", measure)
    return times


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


def fail_if(fails: Callable[[Tile], bool], error: Exception) -> tuple[list[Tile], measuring.Launch]:
    """Launches, and a launch that fails with some tiles."""
    launched: list[Tile] = []

    def launch(tile: Tile) -> None:
        launched.append(tile)
        if fails(tile):
            raise error

    return launched, launch


# ---- the choice without a measurement


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


# ---- tiles and their cost

NAT = (Window.neighborhood(7), (56, 56))


@pytest.mark.parametrize("kind", list(cost.COSTS))
@pytest.mark.parametrize(("channels", "itemsize"), [(32, 2), (32, 4), (256, 4)])
def test_default_tiles(kind: str, channels: int, itemsize: int) -> None:
    tiles = tuning.default_tiles(kind, *NAT, channels, itemsize)
    ranked = tuning.rank_tiles(kind, *NAT, channels, itemsize)
    assert len(set(tiles)) == len(tiles) <= 2 * tuning.MAX_DEFAULTS + 1
    assert tiles[: tuning.MAX_DEFAULTS] == ranked[: tuning.MAX_DEFAULTS]
    for tile in tiles:
        assert min(math.prod(tile.query), math.prod(tile.key)) >= 16
    assert math.prod(tiles[-1].query) == math.prod(tiles[-1].key) == 16
    assert (tiles[-1].num_warps, tiles[-1].num_stages) == (1, 1)


def test_cost_grows_with_work() -> None:
    tile = Tile((8, 8), (8, 8), 4, 2)
    least = cost.estimate("forward", tile, 100, 10, 32, 2)
    assert cost.estimate("forward", tile, 200, 20, 32, 2) == pytest.approx(2 * least)
    for more in [(101, 10, 32, 2), (100, 11, 32, 2), (100, 10, 64, 2), (100, 10, 32, 4)]:
        assert cost.estimate("forward", tile, *more) > least
    assert cost.estimate("key", tile, 100, 10, 32, 2) > least


@pytest.mark.parametrize("kind", ["forward", "key"])
def test_cost_of_warps(kind: str) -> None:
    """A tile of few scores needs one warp; the registers of one warp do not hold a large one."""
    small, large = (
        [cost.estimate(kind, Tile(side, side, warps, 2), 100, 10, 32, 2) for warps in tuning.WARPS]
        for side in ((4, 4), (8, 16))
    )
    assert small == sorted(small)
    assert large.index(min(large)) > 0


MACHINE_CODE = [
    # Kernel, tile, bytes of a number; instructions of all warps in a turn, registers of a thread: Triton 3.6, sm_90,
    # problem "nat-tiny-1 ... d1 rpb" of kernels/bench/compile_report.py (float32 without rpb).
    ("forward", Tile((8, 2), (4, 8), 1, 2), 2, 406, 101),
    ("forward", Tile((4, 8), (2, 16), 1, 2), 2, 608, 168),
    ("forward", Tile((8, 8), (4, 16), 4, 2), 2, 2100, 128),
    ("query", Tile((8, 2), (4, 8), 1, 2), 2, 380, 127),
    ("query", Tile((8, 8), (4, 16), 4, 2), 2, 1972, 118),
    ("key", Tile((2, 16), (2, 8), 1, 2), 2, 429, 185),
    ("key", Tile((16, 2), (8, 8), 2, 2), 2, 1482, 255),
    ("key", Tile((16, 4), (8, 8), 4, 2), 2, 3560, 250),
    ("offset", Tile((8, 2), (4, 8), 1, 2), 2, 315, 182),
    ("offset", Tile((8, 8), (2, 16), 2, 2), 2, 962, 236),
    ("forward", Tile((8, 2), (2, 8), 1, 2), 4, 890, 255),
    ("forward", Tile((8, 8), (2, 16), 4, 2), 4, 5940, 239),
    ("key", Tile((8, 2), (2, 8), 1, 2), 4, 1420, 255),
]


@pytest.mark.parametrize(("kind", "tile", "itemsize", "instructions", "registers"), MACHINE_CODE)
def test_cost_is_close_to_machine_code(kind: str, tile: Tile, itemsize: int, instructions: int, registers: int) -> None:
    assert cost.count_instructions(kind, tile, 32, itemsize) == pytest.approx(instructions, rel=0.2)
    asked = cost.count_registers(kind, tile, 32, itemsize)
    assert min(asked, cost.MAX_REGISTERS) == pytest.approx(registers, rel=0.35)


@pytest.mark.parametrize("length", [1, 7, 19])
@pytest.mark.parametrize(("dilation", "query_stride"), [(1, 1), (3, 1), (3, 2), (4, 2), (1, 3)])
def test_count_of_tiles(length: int, dilation: int, query_stride: int) -> None:
    window = Window.neighborhood(3, dilation=dilation, query_stride=query_stride)
    for by_key, cut in ((False, plan.query_tiles), (True, plan.key_tiles)):
        rows, columns = (len(cut(window.axes[0], length, side)) for side in (4, 8))
        assert cost.count_tiles(window, (length, length), (4, 8), by_key) == rows * columns


# ---- measurement


def test_fastest_tile_wins_and_failures_are_left_out(
    measured: dict[Tile, float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = measuring.measure

    def measure(launch: measuring.Launch, tile: Tile) -> float:
        launch(tile)
        return right(launch, tile)

    monkeypatch.setattr(measuring, "measure", measure)
    for error in FAILURES:
        measured.clear()
        _, launch = fail_if(lambda tile: tile == TILES[3] and not measuring._only_compiles.get(), error)
        with caplog.at_level(logging.DEBUG):
            best = measuring.fastest(TILES, launch, 60)
        assert best == (TILES[2], measured[TILES[2]])
        assert list(measured) == TILES[:3]
        assert str(TILES[3]) in caplog.text
        assert measuring.fastest(TILES[3:], launch, 60) is None


def test_time_of_measurements_is_bounded(measured: dict[Tile, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured until then counts."""
    now = [0.0]
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now[0])

    def launch(tile: Tile) -> None:
        now[0] += 1

    # Compilations begin until 4.5 s: five. A compilation that has begun may take longer than all the time there is.
    assert len(measuring.compile_tiles(TILES * 2, launch, 4.5)) == 5
    now[0] = 0
    assert measuring.fastest(TILES, launch, 1.0) == (TILES[0], 1.0)
    assert list(measured) == TILES[:1]
    assert measuring.fastest(TILES, launch, -1.0) is None


class Kernel:
    """A kernel whose compilations wait for each other, and fail with eight warps."""

    def __init__(self, modes: list[Any], together: int) -> None:
        self.modes, self.launched = modes, 0
        self.barrier = threading.Barrier(together)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(**constants: Any) -> None:
            self.launched += 1

        return launch

    def warmup(self, *, grid: tuple[int, ...], num_warps: int, **constants: Any) -> None:
        def compiled() -> int:
            self.barrier.wait(timeout=30)
            if num_warps == 8:
                raise PTXASError("no")
            return num_warps

        self.modes[-1].submit(num_warps, compiled, lambda kernel: None)


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modes of asynchronous compilation that were entered."""
    entered: list[Any] = []

    class Mode(triton.AsyncCompileMode):  # type: ignore[misc, name-defined]
        def __enter__(self) -> Any:
            entered.append(self)
            return super().__enter__()

    monkeypatch.setattr(triton, "AsyncCompileMode", Mode)
    return entered


def test_tiles_are_compiled_side_by_side(modes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(modes, together=2)  # a single worker would wait for the second in vain
    for ranks in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        monkeypatch.setattr(measuring.os, "cpu_count", lambda ranks=ranks: 2 * ranks)
        begun = measuring.compile_tiles(
            TILES, lambda tile: measuring.start(kernel, (1,), tile=tile), time.monotonic() + 60
        )
        assert begun == TILES
        assert [x.exception() is None for x in modes[-1].raw_futures] == [True, True, True, False]
    assert kernel.launched == 0
    measuring.start(kernel, (1,), tile=TILES[0])
    assert kernel.launched == 1


def test_sample_begins_while_the_device_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the launches of small kernels are timed instead of the kernels."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None: ...

        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, other: "Event") -> float:
            return 10.0

    class Memory:
        def zero_(self) -> None:
            log.append("fill")

    clock = iter([0.0, 100e-6, 100e-6])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch, "empty", lambda *args, **options: Memory())
    assert measuring.measure(lambda tile: log.append("launch"), TILES[0]) == 10.0 / 20
    sample = log[4:]
    assert log[:4] == ["launch", "wait", "launch", "wait"]
    assert len(sample) == measuring.SAMPLES * len(sample[: sample.index("wait") + 1])
    fills = sample.index("event")
    assert set(sample[:fills]) == {"fill"}
    assert fills * measuring.FILL_SECONDS >= 20 * 100e-6
    assert sample[fills : fills + 23] == ["event", *["launch"] * 20, "event", "wait"]


# ---- choice by measurement, and what is kept of it


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
        assert (32, 32) in areas
        assert areas & {(16, 32), (32, 16)}


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


KEY = {"kernel": "forward", "window": [3, 3]}


def test_damaged_files_are_replaced() -> None:
    tile_cache.store(KEY, TILES[0], 0.5)
    (file,) = tile_cache.folder().iterdir()
    entry = json.loads(file.read_text())
    assert tile_cache.load(KEY) == TILES[0]
    for damaged in (
        "",
        file.read_text()[:-20],
        "[]",
        "{}",
        json.dumps(entry | {"tile": 3}),
        json.dumps(entry | {"tile": entry["tile"] | {"query": [3, 8]}}),
        json.dumps(entry | {"tile": entry["tile"] | {"query": [16]}}),
        json.dumps(entry | {"tile": entry["tile"] | {"key": [2, 2]}}),
        json.dumps(entry | {"tile": entry["tile"] | {"num_warps": "4"}}),
        json.dumps(entry | {"tile": entry["tile"] | {"num_stages": None}}),
        json.dumps(entry | {"tile": {"query": [4, 4]}}),
        json.dumps(entry | {"problem": {"kernel": "key"}}),
    ):
        file.write_text(damaged)
        assert tile_cache.load(KEY) is None, damaged
    file.write_bytes(b"\xff\xfe")
    assert tile_cache.load(KEY) is None
    tile_cache.store(KEY, TILES[1], 0.5)
    assert tile_cache.load(KEY) == TILES[1]
    assert list(tile_cache.folder().iterdir()) == [file]


def test_writers_at_the_same_time_lose_nothing() -> None:
    """A reader finds a whole entry or none, whoever writes."""
    keys = [KEY | {"number": i} for i in range(4)]
    found: list[Tile | None] = []

    def write(number: int) -> None:
        for tile in TILES * 5:
            tile_cache.store(keys[number], tile, 1.0)
            tile_cache.store(KEY, tile, 1.0)
            found.append(tile_cache.load(KEY))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(len(keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(keys) * 20
    assert set(found) <= set(TILES)
    assert [tile_cache.load(key) for key in keys] == [TILES[-1]] * len(keys)


def test_entries_of_the_old_format_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path))
    old = tmp_path / "triton_tiles.json"
    old.write_text(json.dumps({json.dumps(KEY): [[4, 4], [4, 4], 1, 2]}))
    assert tile_cache.load(KEY) is None
    tile_cache.store(KEY, TILES[0], 1.0)
    assert tile_cache.load(KEY) == TILES[0]


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
