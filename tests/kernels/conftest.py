"""The benchmark package for its tests, a quicker interpreter of Triton, and a process without NATTEN."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.kernels.interpreter import NOT_INTERPRETED, quicken

MODULES = (
    "script",
    "problems",
    "measure",
    "report",
    "gate",
    "peers",
    "attention",
    "memory",
    "gathered",
    "model_costs",
    "model_process",
    "models",
    "halonet",
    "terminator_reference",
    "terminator",
    "multiscale",
    "parallax",
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


@pytest.fixture
def without_natten() -> Iterator[None]:
    """Forget NATTEN, if it is loaded, and what the test loads under its name."""

    def loaded() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "natten"}

    before, finders = loaded(), [*sys.meta_path]
    for name in before:
        del sys.modules[name]
    yield
    for name in loaded():
        del sys.modules[name]
    sys.modules.update(before)
    sys.meta_path[:] = finders


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if NOT_INTERPRETED is None:
            quicken(patch)
        yield
