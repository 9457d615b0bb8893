"""Folders, archives and labels that are not as they should be."""

import gzip
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from visionattn.cli.errors import describe
from visionattn.data import DataError, ImageClassificationData

Run = Callable[..., Any]
Fails = Callable[..., str]
Quick = tuple[str, ...]


def opened(root: Path | str, stage: str = "fit", **options: Any) -> ImageClassificationData:
    data = ImageClassificationData(root=str(root), img_size=16, batch_size=4, num_workers=0, seed=0, **options)
    data.setup(stage)
    return data


def complaint(root: Path | str, stage: str = "fit", **options: Any) -> str:
    """What is said of a folder that cannot be used."""
    with pytest.raises(DataError) as error:
        opened(root, stage, **options)
    return describe(error.value)


def pack(archive: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(archive, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def validated(data: ImageClassificationData) -> list[str]:
    return [name for batch in data.val_dataloader() for name in batch.name]


def test_an_empty_root(tmp_path: Path) -> None:
    assert complaint(tmp_path).startswith(f"no pictures under {tmp_path} (expected {tmp_path}/train/CLASS/*.jpg and ")


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_a_root_that_is_not_there(tmp_path: Path, stage: str) -> None:
    assert complaint(tmp_path / "gone", stage).startswith(f"no such data folder: {tmp_path}/gone (--data.root")


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_a_root_that_is_a_file(tmp_path: Path, stage: str) -> None:
    (tmp_path / "x.jpg").write_bytes(png())
    says = f"{tmp_path}/x.jpg is a file: --data.root takes a folder, or a .tar file"
    assert complaint(tmp_path / "x.jpg", stage) == says


def test_no_pictures_to_predict(tmp_path: Path) -> None:
    assert complaint(tmp_path, "predict") == f"no pictures under {tmp_path}"


@pytest.mark.parametrize("beside", [True, False], ids=["beside others", "alone"])
def test_pictures_outside_of_class_folders(colour_folder: Path, beside: bool) -> None:
    place = colour_folder / "val"
    if not beside:
        shutil.rmtree(place)
        place.mkdir()
    (place / "x.png").write_bytes(png())
    assert complaint(colour_folder).startswith(f"{place}/x.png lies in no class folder: move it to {place}/CLASS")
    assert len(next(iter(opened(colour_folder, "predict").predict_dataloader())).image) == 4


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        pytest.param("violet", "train has folders without images, which are no classes: violet", id="empty"),
        pytest.param("Red", "train has classes that differ in case alone: Red, red", id="case"),
        pytest.param(
            "warm/orange", "warm/orange lies deeper than .*train/CLASS: the innermost folder is taken", id="deep"
        ),
    ],
)
def test_class_folders_that_make_one_wonder(colour_folder: Path, folder: str, says: str) -> None:
    for split in ("train", "val"):
        (colour_folder / split / folder).mkdir(parents=True)
        if folder != "violet":
            (colour_folder / split / folder / "x.png").write_bytes(png())
    with pytest.warns(UserWarning, match=says):
        data = opened(colour_folder)
    assert data.num_classes == (3 if folder == "violet" else 4)


def test_pictures_of_like_names_and_the_same_picture_twice(colour_folder: Path) -> None:
    folder = colour_folder / "val" / "red"
    (folder / "0.png").write_bytes(png())
    (folder / "0.JPG").write_bytes((folder / "0.jpg").read_bytes())
    (folder / "1 again.jpg").symlink_to("1.jpg")
    names = [Path(name).name for name in validated(opened(colour_folder)) if "/red/" in name]
    assert sorted(names) == ["0.JPG", "0.jpg", "0.png", "1 again.jpg", "1.jpg", "2.jpg"]


def test_one_class_is_nothing_to_tell_apart(colour_folder: Path, fails: Fails, quick: Quick) -> None:
    for split in ("train", "val"):
        for name in ("blue", "green"):
            shutil.rmtree(colour_folder / split / name)
    fails("fit", *quick, f"--data.root={colour_folder}", says="the data have one class, 'red', from which there is")


def test_one_picture_per_class_is_enough(tmp_path: Path, command: Run, quick: Quick) -> None:
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").write_bytes(png())
    assert command("fit", *quick, f"--data.root={tmp_path}", "--model.name=test_resnet").status == 0


def test_a_folder_that_must_not_be_read(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, for root may read all. A walk passes over such folders."""
    locked = colour_folder / "train" / "red"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
    assert complaint(colour_folder).startswith(f"no permission to read {locked}: grant it (chmod u+rX), or choose")


def test_a_root_as_shells_and_people_write_it(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = validated(opened(colour_folder))
    monkeypatch.setenv("HOME", str(colour_folder.parent))
    for root in (f"{colour_folder}/", f"{colour_folder}/./", f"~/{colour_folder.name}", f"{colour_folder}/val/.."):
        assert [Path(name).resolve() for name in validated(opened(root))] == [Path(name) for name in expected]


# Archives


def test_a_tar_that_is_cut_short(tmp_path: Path) -> None:
    archive = pack(tmp_path / "train.tar", {f"a/{number}.png": png() for number in range(9)})
    archive.write_bytes(archive.read_bytes()[:5000])
    assert complaint(tmp_path) == f"cannot read {archive}: unexpected end of data"


def test_a_tar_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_text("hello")
    assert complaint(tmp_path).startswith(f"cannot read {tmp_path}/train.tar: ")


def test_a_tar_without_pictures(tmp_path: Path) -> None:
    assert complaint(pack(tmp_path / "x.tar", {"a/x.txt": b"hello"})).startswith(f"no pictures under {tmp_path}/x.tar")


def test_members_of_a_tar_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "deep" / "down"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    members = {"../../a/x.png": png(), "../evil/y.png": png(), str(tmp_path / "abs" / "z.png"): png()}
    archive = pack(place / "x.tar", members)
    archive.chmod(0o755)  # as foreign file systems show all files
    data = opened(archive, "validate")
    assert data.class_names == ["a", "abs", "evil"]
    assert sum(len(batch.image) for batch in data.val_dataloader()) == 3
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [place / "x.tar"]


def test_one_tar_for_all_is_validated_on_what_it_trains_on(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar", {"a/x.png": png(), "b/y.png": png()})
    with pytest.warns(UserWarning, match="has no splits: what is trained on is validated on, too"):
        opened(archive)


# Labels


def test_a_label_out_of_range(mnist_root: Path, fails: Fails, quick: Quick) -> None:
    path = mnist_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[8 + 13] = 11
    path.write_bytes(gzip.compress(content))
    says = "mnist/t10k/00013 is of class 11, where classes are 0 to 9: correct its label"
    options = ["--data.name=mnist", f"--data.root={mnist_root}", "--trainer.limit_val_batches=1.0"]
    fails("fit", *quick, *options, says=says)


def test_pictures_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As test splits of Hugging Face's have them."""

    class Unlabelled:
        class_to_idx: ClassVar = {"a": 0, "b": 1}

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
            return io.BytesIO(png()), -1

        def filename(self, index: int, absolute: bool = False) -> str:
            return f"row {index}"

    dataset = SimpleNamespace(reader=Unlabelled())
    monkeypatch.setattr("visionattn.data.sources.create_dataset", lambda *args, **options: dataset)
    data = opened(tmp_path, "validate", name="hfds/x", val_split="test")
    with pytest.raises(
        DataError, match="row 0 is of class -1, where classes are 0 to 1: correct its label, or choose a"
    ):
        list(data.val_dataloader())


def test_pictures_to_predict_need_no_labels(colour_folder: Path) -> None:
    (batch, *_) = opened(colour_folder, "predict").predict_dataloader()
    assert batch.image.isfinite().all()
    assert batch.target.dtype == torch.long
