"""Index tables on a device, cached: safe to read in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch

from visionattn_kernels.tracing import outside_modes

Build = TypeVar("Build", bound=Callable[..., Any])

MAX_CACHED_TABLES = 64
"""Tables kept per function; a tile plan takes about 16 bytes per query and key slot (0.4 MB for 56x56, k 7)."""


def device_tables(build: Build) -> Build:
    """Decorate a function of hashable arguments, the last of which is a device, that makes tables on that device.

    The tables used last are kept. On CUDA devices:

    - They are made in a thread of their own. Torch directs the memory of one thread at a time to the pool of a CUDA
      graph, or to another pool, whose owner would hand it out again.
    - The device is waited for when some are made: then any stream may read them, and no stream reads those that make
      room for them any more.
    - They are not made during a capture, which takes no copies from the host. A RuntimeError asks for a run before it.
    - They are kept for the rest of the process if they are read during a capture: the graph reads them at each replay.

    Graphs of other devices, such as XPUs, have no such care.
    """
    make, pinned = outside_modes(build), {}

    @lru_cache(maxsize=MAX_CACHED_TABLES)
    def find_recent(*args: Any) -> Any:
        return _make_on_cuda(make, args) if args[-1].type == "cuda" else make(*args)

    @wraps(build)
    def find(*args: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # its graph makes the tables
            return build(*args)
        if args[-1].type != "cuda" or not torch.cuda.is_current_stream_capturing():
            return find_recent(*args)
        if args not in pinned:
            pinned[args] = find_recent(*args)
        return pinned[args]

    return find  # type: ignore[return-value]


def _make_on_cuda(make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured, and index tables of this window and map size are not on the device yet: "
            "run the model once with inputs of this size before the capture"
        )

    def run() -> Any:
        tables = make(*args)
        torch.cuda.synchronize(args[-1])  # kernels on any stream may read these, and those that make room for them
        return tables

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()
