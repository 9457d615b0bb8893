"""Settings and fixtures of all tests: one thread, no network, a small classifier with its checkpoint, a small MNIST.

`pytest -m gpu` reads the files with such tests alone, which need torch, triton, numpy and pytest. Fixtures import the
rest.
"""

from __future__ import annotations

import gzip
import os

# Before huggingface_hub is imported: a test that would download fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported: one test process per core already uses all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Before triton is imported: its kernels then run on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from torch import nn

if TYPE_CHECKING:
    from visionattn.training import ModelSpec

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 50)}


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.hasplugin("xdist"):
        for name in ("--numprocesses", "--maxprocesses", "--dist"):
            parser.addoption(name, help="of pytest-xdist, which is not installed: ignored")
    parser.addoption(
        "--coco-panoptic-root",
        type=Path,
        default=Path("data/coco-panoptic-100"),
        help="folder of COCO panoptic, or of some of its images, for tests marked slow",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files and folders without GPU tests if those alone are asked for."""
    if config.getoption("-m") != "gpu":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("mark.gpu" in path.read_text(encoding="utf-8") for path in files) else True


@pytest.fixture
def coco_panoptic_root(request: pytest.FixtureRequest) -> Path:
    """Return the folder of real images with panoptic annotations, or skip the test."""
    root: Path = request.config.rootpath / request.config.getoption("--coco-panoptic-root")
    if not (root / "annotations").is_dir():
        pytest.skip(f"no COCO panoptic in {root} (--coco-panoptic-root)")
    return root


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Restore the number of threads after a test of code that sets it, such as a benchmark."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_progress_is_due() -> None:
    """Reset the clock of progress lines, which commands print after a silent minute."""
    if progress := sys.modules.get("visionattn.cli.progress"):
        progress._Lines.written = time.monotonic()


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which no file can grow beyond some bytes, as on a full disk."""
    import resource  # of POSIX alone

    @contextmanager
    def limit(num_bytes: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limit


@pytest.fixture
def colour_folder(tmp_path: Path) -> Path:
    """Write images of one colour each: ``train`` and ``val`` with three classes, 4 and 3 images per class."""
    from PIL import Image

    root = tmp_path / "colours"
    for split, count in (("train", 4), ("val", 3)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                shade = tuple(min(255, channel + 5 * index) for channel in colour)
                Image.new("RGB", (40, 32), shade).save(folder / f"{index}.jpg")
    return root


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """Write MNIST's four files, compressed: 40 and 20 noisy bars, whose position is the digit."""
    root, rng = tmp_path / "mnist", np.random.default_rng(0)
    (root / "MNIST" / "raw").mkdir(parents=True)
    for prefix, count in (("train", 40), ("t10k", 20)):
        digits = np.arange(count) % 10
        scans = rng.integers(0, 64, (count, 28, 28))
        for scan, digit in zip(scans, digits, strict=True):
            scan[2 * digit + 4 : 2 * digit + 6] += 190
        write_idx(root / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte.gz", scans)
        write_idx(root / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte.gz", digits)
    return root


@pytest.fixture
def dominoes_root(mnist_root: Path) -> Path:
    """Write CIFAR-10's class folders beside MNIST: 4 and 2 photos of each class, of a shade of grey that is theirs."""
    from PIL import Image

    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(names):
            folder = mnist_root / "cifar10" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (20 * number + index,) * 3).save(folder / f"{index}.png")
    return mnist_root


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write MNIST's format: magic number, lengths of the axes, bytes; compressed if the name ends in .gz."""
    header = np.array([0x0800 + values.ndim, *values.shape], dtype=">u4")
    content = header.tobytes() + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, compresslevel=1) if path.suffix == ".gz" else content)


@pytest.fixture(scope="session")
def classifier() -> nn.Module:
    """Build a very small ResNet with three classes."""
    from visionattn.training import create_model

    torch.manual_seed(0)
    return create_model("test_resnet", num_classes=3).eval()


@pytest.fixture
def spec() -> ModelSpec:
    """Describe ``classifier``, as if trained on images of three colours."""
    from visionattn.training import ModelSpec

    preprocessing = {
        "input_size": (3, 32, 32),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    return ModelSpec("test_resnet", {}, 3, sorted(COLOURS), preprocessing, "folder")


@pytest.fixture
def checkpoint(tmp_path: Path, classifier: nn.Module, spec: ModelSpec) -> Path:
    """Write a checkpoint with a moving average: the average is ``classifier``, raw weights are 0."""
    average = {f"model.{name}": value for name, value in classifier.state_dict().items()}
    path = tmp_path / "best.ckpt"
    torch.save(
        {
            "state_dict": {**average, "criterion.weight": torch.ones(3)},
            "current_model_state": {name: torch.zeros_like(value) for name, value in average.items()},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
            "visionattn": spec.to_dict(),
        },
        path,
    )
    return path


@pytest.fixture
def digits_checkpoint(tmp_path: Path, spec: ModelSpec) -> Path:
    """Write a checkpoint of an untrained classifier of the embedded digits."""
    from visionattn.training import create_model

    model = create_model("test_resnet", num_classes=10)
    described = replace(spec, num_classes=10, class_names=[str(digit) for digit in range(10)], dataset="digits")
    path = tmp_path / "digits.ckpt"
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "visionattn": described.to_dict()}, path)
    return path
