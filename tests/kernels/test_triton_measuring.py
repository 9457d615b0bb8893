"""Compilation and measurement of tiles in bounded time, without a GPU: launches, compilations and clocks are faked."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from visionattn_kernels.attention.triton.plan import Tile

triton = pytest.importorskip("triton")

from triton.runtime.errors import PTXASError  # noqa: E402

from tests.kernels.fake_launches import FAILURES, TILES, fail_if, fake_measure  # noqa: E402
from visionattn_kernels.attention.triton import measuring  # noqa: E402


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[Tile, float]:
    """What is measured, and how long it takes."""
    return fake_measure(monkeypatch)


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
    now, right = [0.0], measuring.measure
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def launch(tile: Tile) -> None:
        now[0] += 1

    def measure(launch: measuring.Launch, tile: Tile) -> float:
        launch(tile)
        return right(launch, tile)

    # Compilations begin until 4.5 s: five. One that has begun may take longer than all the time there is.
    assert len(measuring.compile_tiles(TILES * 2, launch, 4.5)) == 5
    monkeypatch.setattr(measuring, "measure", measure)
    now[0] = 0
    assert measuring.fastest(TILES, launch, 5) == (TILES[1], 0.5)  # 4 s of compilations, and measurements at 4 and 5 s
    assert list(measured) == TILES[:2]
    assert measuring.fastest(TILES, launch, -1) is None


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
        monkeypatch.setattr(os, "cpu_count", lambda ranks=ranks: 2 * ranks)
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
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
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
