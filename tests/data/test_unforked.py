"""Loader processes that are not forked, as on macOS, on Windows, and on Linux from Python 3.14 on."""

import io
import json
import multiprocessing
import os
import pickle
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tests.data import torchvision_copies as copies
from visionattn.data import ImageClassificationData, ReidData
from visionattn.data.loading import ImageDataset, ImageLoader, sigterm_blocked, start_worker
from visionattn.data.reid.identity_folders import IdentityFolders
from visionattn.data.reid.layouts import LAYOUTS, ReidImage
from visionattn.data.reid.source import ReidSource
from visionattn.data.sampling import Draw
from visionattn.data.scenes import SceneData

pytestmark = pytest.mark.filterwarnings("ignore:.*(is not the whole of|are validated on)")


def save(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8)).save(path)
    return path


def write_tars(root: Path) -> Path:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    for split in ("train", "val"):
        root.mkdir(exist_ok=True)
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for name in ("a/0.png", "b/0.png"):
                info = tarfile.TarInfo(name)
                info.size = len(content.getvalue())
                tar.addfile(info, io.BytesIO(content.getvalue()))
    return root


def write_table(root: Path) -> str:
    """Write a table of images of 5 channels with several labels."""
    root.mkdir()
    for number in range(3):
        np.save(root / f"{number}.npy", np.full((5, 8, 8), number, np.uint8))
    (root / "labels.csv").write_text("path,label,split\n0.npy,x|y,train\n1.npy,y,train\n2.npy,x,val\n")
    return str(root / "labels.csv")


def write_scenes(root: Path) -> dict[str, Path]:
    """Data sets of one scene each, in which nothing is labelled."""
    for split in ("training", "validation"):
        save(root / "ade20k" / split / "x.jpg")
        save(root / "ade20k" / split / "x_seg.png")
    for split in ("train2017", "val2017"):
        save(root / "coco_panoptic" / split / "x.jpg")
        save(root / "coco_panoptic" / "annotations" / f"panoptic_{split}" / "x.png")
        table = {
            "images": [{"id": 1, "file_name": "x.jpg"}],
            "annotations": [{"image_id": 1, "file_name": "x.png", "segments_info": []}],
            "categories": [{"id": 1, "name": "x", "isthing": 1}],
        }
        (root / "coco_panoptic" / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(table))
    save(root / "folder" / "images" / "x.jpg")
    save(root / "folder" / "instances" / "x.png", "L")
    return {name: root / name for name in ("ade20k", "coco_panoptic", "folder")}


def loaders_of(module: Any, **options: Any) -> Iterator[ImageLoader]:
    data = module(batch_size=4, num_workers=0, seed=0, **options)
    data.setup("fit")
    yield data.train_dataloader()
    yield data.val_dataloader()


@pytest.fixture
def loaders(tmp_path: Path, colour_folder: Path, mnist_root: Path, market: Path) -> dict[str, list[ImageLoader]]:
    """Loaders for training and evaluation of each data set, with every transform."""
    augmented = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "aug_repeats": 3, "limit_per_class": 2}
    copies.usps(tmp_path)
    several = {"labels": write_table(tmp_path / "table"), "multi_label": True, "balance": "sampler"}
    images: dict[str, dict[str, Any]] = {
        "digits": {"sequence": "permuted", "permutation_seed": 0},
        "mnist": {"name": "mnist", "root": str(mnist_root), "in_chans": 1, "crop_padding": 2},
        "folder": {"root": str(colour_folder), "img_size": 16, **augmented},
        "cached folder": {"root": str(colour_folder), "img_size": 16, "cache": 0.01},
        "tar": {"root": str(write_tars(tmp_path / "tars")), "img_size": 16},
        "table of arrays": {"in_chans": 5, "img_size": 8, **several},
        "torchvision": {"name": "torch/usps", "root": str(tmp_path), "img_size": 16},
    }
    found = {name: list(loaders_of(ImageClassificationData, **options)) for name, options in images.items()}
    found["identities"] = list(loaders_of(ReidData, instances=2))
    found["market1501"] = list(loaders_of(ReidData, root=str(market), height=16, width=8, instances=2))
    image = ReidImage(str(save(tmp_path / "x.png")), 1, 1)
    for name, layout in {**LAYOUTS, "folder": IdentityFolders()}.items():
        dataset = ImageDataset(ReidSource([image], layout.open), found["market1501"][1].dataset.transform)  # type: ignore[attr-defined]
        found[f"layout of {name}"] = [ImageLoader(dataset, sampler=[Draw(0)], collate_fn=len)]
    found["synthetic"] = list(loaders_of(SceneData, image_size=16))
    for name, root in write_scenes(tmp_path / "scenes").items():
        found[f"scenes of {name}"] = list(loaders_of(SceneData, name=name, root=str(root), image_size=16))
    return found


class FirstBatches(Dataset[Any]):
    """The first batch of each of many loaders, to be read in one process."""

    def __init__(self, loaders: list[ImageLoader]) -> None:
        self.parts = [(loader.dataset, next(iter(loader.batch_sampler)), loader.collate_fn) for loader in loaders]  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        dataset, draws, collate = self.parts[index]
        return os.getpid(), collate(dataset.__getitems__(draws))  # type: ignore[attr-defined]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return all(map(same, one, other)) if isinstance(one, tuple) else bool(one == other)


def test_data_sets_pickle(loaders: dict[str, list[ImageLoader]]) -> None:
    for name, each in loaders.items():
        batches = FirstBatches(each)
        for place, (_, batch) in enumerate(pickle.loads(pickle.dumps(batches))):
            assert same(batch, batches[place][1]), name


def run_server(pipe: Any) -> None:
    """Fork the worker as a fork server does for a loader; the worker belongs to another process.

    As with gRPC, a thread starts in the worker at once; it must not take the signal.
    """
    os.register_at_fork(after_in_child=lambda: threading.Thread(target=time.sleep, args=(60,), daemon=True).start())
    with sigterm_blocked():
        worker = os.fork()
    if worker == 0:
        start_worker(None, 0)
        pipe.send(os.getpid())
        time.sleep(60)
    pipe.send(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))


def test_worker_of_a_fork_server_ends_when_its_parent_says() -> None:
    fork = multiprocessing.get_context("fork")
    pipe, end = fork.Pipe()
    fork.Process(target=run_server, args=(end,)).start()
    os.kill(pipe.recv(), signal.SIGTERM)
    assert pipe.poll(20)
    assert pipe.recv() == 0


@pytest.mark.parametrize(
    ("method", "workers", "imports"), [("forkserver", 1, 1), ("forkserver", 0, 0), ("spawn", 1, 0)]
)
def test_fork_server_imports_the_package_once(
    monkeypatch: pytest.MonkeyPatch, method: str, workers: int, imports: int
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    monkeypatch.setattr(multiprocessing, "set_forkserver_preload", asked.append)
    monkeypatch.setattr(DataLoader, "__iter__", lambda loader: iter(()))
    assert list(ImageLoader([], num_workers=workers)) == []  # type: ignore[arg-type]
    assert asked == [["__main__", "visionattn.data"]] * imports


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_data_sets_are_read_in_an_unforked_process(loaders: dict[str, list[ImageLoader]], method: str) -> None:
    batches = FirstBatches([loader for each in loaders.values() for loader in each])
    start = next(iter(loaders.values()))[0].worker_init_fn
    options = {"batch_size": None, "num_workers": 1, "multiprocessing_context": method, "worker_init_fn": start}
    for place, (process, batch) in enumerate(DataLoader(batches, **options)):
        assert process != os.getpid()
        assert same(batch, batches[place][1])
