"""Cached index tables: bounded, ordinary tensors, and on CUDA devices safe to read in captured graphs."""

import inspect
import pkgutil
import threading
from importlib import import_module

import pytest
import torch
from torch import Tensor

import visionattn_kernels
from visionattn_kernels.attention.devices import TRITON_INSTALLED
from visionattn_kernels.device_tables import MAX_CACHED_TABLES, device_tables

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Gpu:
    """What a test reads and sets: whether a graph is captured, and how often the device was waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captures, self.waits = False, 0
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.captures)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)

    def wait(self, device: torch.device) -> None:
        assert device == CUDA
        self.waits += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Pose as torch with a GPU; tables then stay on the CPU."""
    return Gpu(monkeypatch)


class Builder:
    """A function that makes tables, and the threads that it ran in."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.find = device_tables(self.build)

    def build(self, length: int, device: torch.device) -> Tensor:
        self.threads.append(threading.get_ident())
        return torch.arange(length, device="cpu")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_tables_are_made_once_and_kept_up_to_a_bound(device: torch.device) -> None:
    builder = Builder()
    first = builder.find(0, device)
    assert builder.find(0, device) is first
    for length in range(1, MAX_CACHED_TABLES):
        builder.find(length, device)
    assert builder.find(0, device) is first
    assert len(builder.threads) == MAX_CACHED_TABLES
    builder.find(MAX_CACHED_TABLES, device)
    builder.find(1, device)
    assert len(builder.threads) == MAX_CACHED_TABLES + 2, "the one that was used longest ago has made room"


def test_tables_of_a_gpu_are_made_outside_of_the_callers_memory_pool(gpu: Gpu) -> None:
    """`torch.cuda.use_mem_pool`, and inductor's CUDA graphs likewise, route allocations of the current thread alone."""
    builder = Builder()
    with torch.inference_mode():
        tables = builder.find(3, CUDA)
    assert builder.threads[0] != threading.get_ident()
    assert gpu.waits == 1, "any stream may read them, and none those that make room"
    assert not tables.is_inference()
    builder.find(4, CPU)
    assert builder.threads[1] == threading.get_ident()
    assert gpu.waits == 1


def test_tables_are_not_made_during_a_capture(gpu: Gpu) -> None:
    builder = Builder()
    gpu.captures = True
    with pytest.raises(RuntimeError, match=r"run the model once with inputs of this size before the capture$"):
        builder.find(3, CUDA)
    assert builder.threads == []
    builder.find(3, CPU)
    gpu.captures = False
    first = builder.find(3, CUDA)
    gpu.captures = True
    assert builder.find(3, CUDA) is first


def test_tables_that_a_captured_graph_reads_are_kept_for_good(gpu: Gpu) -> None:
    builder = Builder()
    read, unread = builder.find(0, CUDA), builder.find(1, CUDA)
    gpu.captures = True
    assert builder.find(0, CUDA) is read
    gpu.captures = False
    for length in range(2, MAX_CACHED_TABLES + 3):
        builder.find(length, CUDA)
    assert builder.find(1, CUDA) is not unread
    gpu.captures = True
    assert builder.find(0, CUDA) is read


def test_tables_made_of_other_tables(gpu: Gpu) -> None:
    builder = Builder()

    @device_tables
    def double(length: int, device: torch.device) -> Tensor:
        return builder.find(length, device) * 2

    assert double(3, CUDA).tolist() == [0, 2, 4]
    assert gpu.waits == 2


def test_failure_to_make_tables_reaches_the_caller(gpu: Gpu) -> None:
    @device_tables
    def fail(device: torch.device) -> Tensor:
        raise ValueError("no such window")

    for _ in range(2):
        with pytest.raises(ValueError, match="no such window"):
            fail(CUDA)
    assert gpu.waits == 0


def test_no_cache_but_this_one_holds_tables_of_a_device() -> None:
    absent = () if TRITON_INSTALLED else ("triton",)
    found = []
    for module in pkgutil.walk_packages(visionattn_kernels.__path__, "visionattn_kernels."):
        if {"graph_marks", *absent}.intersection(module.name.split(".")):
            continue
        for name, function in vars(import_module(module.name)).items():
            if hasattr(function, "cache_info") and "device" in inspect.signature(function).parameters:
                found.append(f"{module.name}.{name}")
    assert found == []
