"""Times, rates of the machine, and peak memory."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]
"""What is timed: from a problem's tensors, or from nothing, to the output."""

SLOW_MS = 400
"""A run longer than this is repeated three times only."""

FLUSH_BYTES = 256 << 20
"""Written before each timed run on a GPU: more than any L2 cache holds."""

MAX_WRITES = 64
"""Most times that this is written before a run: about 5 ms where memory takes 3.5 TB/s."""


class Stopwatch:
    """Milliseconds of single runs.

    On a GPU the time is that between two events of the stream, with a cold L2 cache. The device first writes what
    empties the cache, as often as it takes until the host has queued the whole run: so the launches are hidden, as they
    are in a network. A run that waits for the device, or that the host queues for longer than `MAX_WRITES` take, is
    timed with the gaps that it has.

    Attributes:
        writes: Times that the cache is emptied before a run. It only grows, to what the slowest host code needed.
    """

    def __init__(self, device: torch.device) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
        self.writes = 1

    def __call__(self, run: Run) -> float:
        """Return the milliseconds of one run."""
        if self.flush is None:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        while True:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            for _ in range(self.writes):
                self.flush.zero_()
            begin.record()
            run()
            end.record()
            device_waited = begin.query()  # it began the run before the host had queued the end
            torch.cuda.synchronize()
            if not device_waited or self.writes == MAX_WRITES:
                return begin.elapsed_time(end)
            self.writes *= 2


def time_in_turn(
    runs: Mapping[str, Run], device: torch.device, repeats: int, stopwatch: Callable[[Run], float] | None = None
) -> dict[str, float]:
    """Return the median milliseconds of each run, as `stopwatch` measures them: by default a `Stopwatch`.

    They are taken in turn, so that what else the machine does falls on all of them, each time in another order, so
    that none always finds the cache as the same one left it.
    """
    stopwatch = stopwatch or Stopwatch(device)
    for run in runs.values():
        for _ in range(1 if device.type == "cpu" else 3):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in random.Random(repeat).sample(list(runs), len(runs)):
            if repeat < 3 or times[name][0] <= SLOW_MS:
                times[name].append(stopwatch(runs[name]))
    return {name: statistics.median(found) for name, found in times.items()}


@dataclass(frozen=True)
class Rates:
    """Rates of the machine on a large matrix product and on a large copy (read plus written)."""

    flops_per_second: float
    bytes_per_second: float

    def floor_ms(self, flops: float, bytes_moved: float) -> float:
        """Return the least time for this work: the longer of arithmetic and traffic."""
        return 1e3 * max(flops / self.flops_per_second, bytes_moved / self.bytes_per_second)


def largest_error(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return the largest difference of tensors, each relative to the largest expected entry; NaN if one has NaN."""
    pairs = zip(found, expected, strict=True)
    return float(torch.stack([((a - b).abs().max() / b.abs().max()).detach().float().cpu() for a, b in pairs]).max())


def measure_rates(device: torch.device, dtype: torch.dtype, quick: bool = False) -> Rates:
    """Measure the best of many products and copies, each far larger than a cache unless `quick`."""
    n, size = (256, 1 << 16) if quick else (2048, 1 << 26) if device.type == "cpu" else (8192, 1 << 28)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(size, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    stopwatch = Stopwatch(device)

    def best(run: Run) -> float:
        return min([stopwatch(run) for _ in range(3 if quick else 30)]) / 1e3

    flops = 2 * n**3 / best(lambda: torch.mm(a, b))
    return Rates(flops, 2 * source.nbytes / best(lambda: target.copy_(source)))


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the most bytes that torch's allocator handed out at once during a run, beyond those before it.

    On a CPU this counts tensors, also those inside operators, and no other memory.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # it reports every start and stop
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    changes = [x for x in profile.profiler.kineto_results.events() if x.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda x: x.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak
