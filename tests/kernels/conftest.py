"""The benchmark package, for its tests."""

import importlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

MODULES = (
    "script",
    "problems",
    "measure",
    "report",
    "gate",
    "peers",
    "attention",
    "memory",
    "models",
    "halonet",
    "terminator_reference",
    "terminator",
    "loops",
    "training",
    "loader",
    "startup",
    "table",
    "plot",
)


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of kernels/bench, which set the number of threads."""
    threads = torch.get_num_threads()
    yield SimpleNamespace(**{name: importlib.import_module(f"kernels.bench.{name}") for name in MODULES})
    torch.set_num_threads(threads)
