"""Faults of folders, archives and labels."""

import gzip
import io
import json
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

from visionattn.cli import export as exporting
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
    """Return the error for a folder that cannot be used."""
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


def test_empty_root_is_an_error(tmp_path: Path) -> None:
    assert complaint(tmp_path).startswith(f"no images under {tmp_path} (expected {tmp_path}/train/CLASS/*.jpg and ")


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_missing_root_is_an_error(tmp_path: Path, stage: str) -> None:
    assert complaint(tmp_path / "gone", stage).startswith(f"no such data folder: {tmp_path}/gone (--data.root")


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_root_that_is_a_file_is_an_error(tmp_path: Path, stage: str) -> None:
    (tmp_path / "x.jpg").write_bytes(png())
    says = f"{tmp_path}/x.jpg is a file: --data.root takes a folder, or a .tar file"
    assert complaint(tmp_path / "x.jpg", stage) == says


def test_predict_without_images_is_an_error(tmp_path: Path) -> None:
    assert complaint(tmp_path, "predict") == f"no images under {tmp_path}"


@pytest.mark.parametrize("beside", [True, False], ids=["beside others", "alone"])
def test_image_outside_of_class_folders_is_named(colour_folder: Path, beside: bool) -> None:
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
def test_unusual_class_folders_are_warned_of(colour_folder: Path, folder: str, says: str) -> None:
    for split in ("train", "val"):
        (colour_folder / split / folder).mkdir(parents=True)
        if folder != "violet":
            (colour_folder / split / folder / "x.png").write_bytes(png())
    with pytest.warns(UserWarning, match=says):
        data = opened(colour_folder)
    assert data.num_classes == (3 if folder == "violet" else 4)


def test_duplicate_images_and_names_all_count(colour_folder: Path) -> None:
    folder = colour_folder / "val" / "red"
    (folder / "0.png").write_bytes(png())
    (folder / "0.JPG").write_bytes((folder / "0.jpg").read_bytes())
    (folder / "1 again.jpg").symlink_to("1.jpg")
    names = [Path(name).name for name in validated(opened(colour_folder)) if "/red/" in name]
    assert sorted(names) == ["0.JPG", "0.jpg", "0.png", "1 again.jpg", "1.jpg", "2.jpg"]


def test_single_class_is_an_error(colour_folder: Path, fails: Fails, quick: Quick) -> None:
    for split in ("train", "val"):
        for name in ("blue", "green"):
            shutil.rmtree(colour_folder / split / name)
    fails("fit", *quick, f"--data.root={colour_folder}", says="the data have one class, 'red', from which there is")


def test_single_image_per_class_is_trained_on(tmp_path: Path, command: Run, quick: Quick) -> None:
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").write_bytes(png())
    assert command("fit", *quick, f"--data.root={tmp_path}", "--model.name=test_resnet").status == 0


def test_folder_without_permission_is_named(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, as root may read everything. A walk skips such folders."""
    locked = colour_folder / "train" / "red"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
    assert complaint(colour_folder).startswith(f"no permission to read {locked}: grant it (chmod u+rX), or choose")


def test_root_with_tilde_slash_or_dots_is_found(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = validated(opened(colour_folder))
    monkeypatch.setenv("HOME", str(colour_folder.parent))
    for root in (f"{colour_folder}/", f"{colour_folder}/./", f"~/{colour_folder.name}", f"{colour_folder}/val/.."):
        assert [Path(name).resolve() for name in validated(opened(root))] == [Path(name) for name in expected]


# Skipped files, and names


def litter(root: Path) -> None:
    """Add the files that notebooks, file servers and operating systems leave beside images."""
    for split in ("train", "val"):
        image = (root / split / "red" / "0.jpg").read_bytes()
        for name in (".ipynb_checkpoints/0.jpg", "@eaDir/0.jpg", "__MACOSX/red/0.jpg", "red/.ipynb_checkpoints/0.jpg"):
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            (root / split / name).write_bytes(image)
        for name in ("red/._0.jpg", "red/Thumbs.db", ".DS_Store"):
            (root / split / name).write_bytes(b"no image")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_hidden_and_system_files_are_neither_classes_nor_images(colour_folder: Path, stage: str, packed: bool) -> None:
    litter(colour_folder)
    if packed:
        for split in ("train", "val"):
            with tarfile.open(colour_folder / f"{split}.tar", "w") as tar:
                tar.add(colour_folder / split, arcname=".")
            shutil.rmtree(colour_folder / split)
    place = colour_folder / ("val.tar" if packed else "val")
    with pytest.warns(UserWarning, match="val(.tar)?: passed over hidden or system files and folders: 7"):
        data = opened(colour_folder if stage == "fit" else place, stage)
    if stage == "fit":
        assert data.class_names == ["blue", "green", "red"]
        assert len(validated(data)) == 9
    else:
        assert sum(len(batch.name) for batch in data.predict_dataloader()) == 9


def test_torchvision_folder_reader_is_replaced_by_ours(colour_folder: Path) -> None:
    litter(colour_folder)
    assert opened(colour_folder, name="torch/image_folder").class_names == ["blue", "green", "red"]


def test_images_of_every_format_are_read_and_other_files_counted(colour_folder: Path) -> None:
    for split in ("train", "val"):
        for number, suffix in enumerate((".jfif", ".jpe", ".webp", ".bmp")):
            folder = colour_folder / split / f"kind {number}"
            folder.mkdir()
            with Image.open(colour_folder / split / "red" / "0.jpg") as image:
                image.save(folder / f"0{suffix}")
        (colour_folder / split / "phone").mkdir()
        (colour_folder / split / "phone" / "0.heic").touch()
    with pytest.warns(UserWarning, match="passed over") as warned:
        data = opened(colour_folder)
    said = {str(warning.message) for warning in warned}
    assert f"{colour_folder}/val: passed over files that are not images Pillow reads: 1 (.heic)" in said
    assert f"{colour_folder}/val has folders without images, which are no classes: phone" in said
    assert data.class_names == ["blue", "green", "kind 0", "kind 1", "kind 2", "kind 3", "red"]
    assert len(validated(data)) == 13


COMPOSED, DECOMPOSED = "K\u00e4se", "Ka\u0308se"


def test_folders_of_one_name_in_two_unicode_forms_are_one_class(colour_folder: Path) -> None:
    (colour_folder / "train" / "blue").rename(colour_folder / "train" / COMPOSED)
    (colour_folder / "train" / "green").rename(colour_folder / "train" / DECOMPOSED)
    (colour_folder / "val" / "blue").rename(colour_folder / "val" / DECOMPOSED)
    shutil.rmtree(colour_folder / "val" / "green")
    says = f"train has class names that differ in their Unicode form alone, and are one class: {COMPOSED}"
    with pytest.warns(UserWarning, match=says):
        data = opened(colour_folder)
    assert data.class_names == [COMPOSED, "red"]
    assert torch.cat([batch.target for batch in data.val_dataloader()]).tolist() == [0] * 3 + [1] * 3


def test_checkpoint_with_the_other_unicode_form_keeps_its_names(colour_folder: Path) -> None:
    for split in ("train", "val"):
        (colour_folder / split / "blue").rename(colour_folder / split / COMPOSED)
    data = ImageClassificationData(root=str(colour_folder), img_size=16, num_workers=0)
    data.expect_classes(["green", "red", DECOMPOSED])
    data.setup("validate")
    assert data.class_names == ["green", "red", DECOMPOSED]
    assert torch.cat([batch.target for batch in data.val_dataloader()]).tolist() == [0] * 3 + [2] * 3 + [1] * 3


def test_names_that_are_not_utf8_are_escaped(
    colour_folder: Path, command: Run, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the locale is ASCII, which is simulated for files that are opened without an encoding."""
    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    latin = os.fsdecode(b"caf\xe9")
    for split in ("train", "val"):
        (colour_folder / split / "blue").rename(colour_folder / split / latin)
        (colour_folder / split / "green").rename(colour_folder / split / "grün")
    (colour_folder / "val" / "red" / f"{latin}.jpg").write_bytes(b"no image")
    assert command("fit", *quick, f"--data.root={colour_folder}", "--data.on_error=skip").status == 0
    (best,) = Path("runs").rglob("best.ckpt")
    skip = ["--data.num_workers=0", "--data.on_error=skip"]
    words = ["--output=r.json", "--per_class=r.csv", "--confusion_matrix=r.svg", f"--data.root={colour_folder}"]
    found = command("classify", f"--checkpoint={best}", *words, *skip)
    assert found.status == 0
    assert r"red/caf\xe9.jpg: not an image that Pillow knows" in found.out
    assert r"red/caf\xe9.jpg" in json.loads(Path("r.json").read_text(encoding="utf-8"))["unreadable"][0]
    assert r"caf\xe9,3," in Path("r.csv").read_text(encoding="utf-8")
    assert r"<!-- caf\xe9 -->" in Path("r.svg").read_text(encoding="utf-8")
    words = [f"--ckpt_path={best}", f"--data.root={colour_folder}/val", "--output=p.csv"]
    assert command("predict", *words, *skip).status == 0
    predicted = Path("p.csv").read_text(encoding="utf-8")
    assert r"/caf\xe9/0.jpg," in predicted
    assert "/grün/0.jpg," in predicted
    exporting.main(["hub", f"--checkpoint={best}", "--output=hub"])
    config = json.loads(Path("hub/config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == [r"caf\xe9", "grün", "red"]


# Archives


def test_truncated_tar_is_an_error(tmp_path: Path) -> None:
    archive = pack(tmp_path / "train.tar", {f"a/{number}.png": png() for number in range(9)})
    archive.write_bytes(archive.read_bytes()[:5000])
    assert complaint(tmp_path) == f"cannot read {archive}: unexpected end of data"


def test_file_that_is_no_tar_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_text("hello")
    assert complaint(tmp_path).startswith(f"cannot read {tmp_path}/train.tar: ")


def test_tar_without_images_is_an_error(tmp_path: Path) -> None:
    assert complaint(pack(tmp_path / "x.tar", {"a/x.txt": b"hello"})).startswith(f"no images under {tmp_path}/x.tar")


def test_tar_members_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_tar_without_splits_is_warned_of(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar", {"a/x.png": png(), "b/y.png": png()})
    with pytest.warns(UserWarning, match="has no splits: the training images are also the validation images"):
        opened(archive)


# Labels


def test_label_out_of_range_is_named(mnist_root: Path, fails: Fails, quick: Quick) -> None:
    path = mnist_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[8 + 13] = 11
    path.write_bytes(gzip.compress(content))
    says = "mnist/t10k/00013 is of class 11, where classes are 0 to 9: correct its label"
    options = ["--data.name=mnist", f"--data.root={mnist_root}", "--trainer.limit_val_batches=1.0"]
    fails("fit", *quick, *options, says=says)


def test_image_without_label_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test splits of Hugging Face have such labels (-1)."""

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


def test_predict_needs_no_labels(colour_folder: Path) -> None:
    (batch, *_) = opened(colour_folder, "predict").predict_dataloader()
    assert batch.image.isfinite().all()
    assert batch.target.dtype == torch.long
