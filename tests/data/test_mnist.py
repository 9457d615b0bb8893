"""MNIST's files, packed and not, whole and not."""

import gzip
from pathlib import Path

import pytest
import torch

from visionattn.data import DataError, ImageClassificationData


def opened(root: Path, **options: object) -> ImageClassificationData:
    defaults: dict[str, object] = {"in_chans": 1, "batch_size": 10, "num_workers": 0, "no_aug": True, "crop_pct": 1.0}
    data = ImageClassificationData("mnist", str(root), **{**defaults, **options})  # type: ignore[arg-type]
    data.setup("fit")
    return data


def unpack(root: Path) -> None:
    for path in (root / "MNIST" / "raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


@pytest.mark.parametrize("packed", [True, False])
def test_files_are_read_packed_or_not(mnist_root: Path, packed: bool) -> None:
    if not packed:
        unpack(mnist_root)
    data = opened(mnist_root, mean=[0.0], std=[1.0])
    assert data.describe() == "mnist: 40 train, 20 validation images of 10 classes"
    batches = list(data.val_dataloader())
    assert [batch.image.shape for batch in batches] == [(10, 1, 28, 28)] * 2
    assert batches[1].name[0] == "mnist/t10k/00010"
    for batch in batches:
        assert batch.target.tolist() == list(range(10))
        # The brightest rows are where the fixture drew its bar.
        assert (batch.to("cpu").image.mean((1, 3)).argmax(1) // 2 - 2).tolist() == list(range(10))


def test_images_may_be_asked_for_in_colour(mnist_root: Path) -> None:
    (batch, _) = opened(mnist_root, in_chans=3, mean=[0.0] * 3, std=[1.0] * 3).val_dataloader()
    assert torch.equal(batch.image[:, 0], batch.image[:, 2])


def test_missing_files_are_named(mnist_root: Path) -> None:
    with pytest.raises(DataError, match=r"mnist needs --data.root FOLDER"):
        ImageClassificationData("mnist").setup("fit")
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte or .*gz in .*raw/MNIST/raw"):
        opened(mnist_root / "MNIST" / "raw")
    (mnist_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"no t10k-labels-idx1-ubyte .*downloads nothing"):
        opened(mnist_root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-200], "only part of it"),
        (lambda content: b"<html>not found</html>", "cannot read"),
        (lambda content: content[:200] + b"????" + content[204:], "cannot read|only part of it"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-7]), "states 40×28×28 bytes, the file holds 31353"),
        (lambda content: gzip.compress(b"\x89PNG" + gzip.decompress(content)[4:]), "not an IDX file of 3 axes"),
        (lambda content: gzip.compress(b""), "not an IDX file"),
    ],
    ids=["cut short", "another file", "damaged", "cut short before packing", "another format", "empty"],
)
def test_corrupt_file_is_named(mnist_root: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    path = mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte.gz.*({message})|({message}).*"):
        opened(mnist_root)


def test_images_and_labels_belong_together(mnist_root: Path) -> None:
    folder = mnist_root / "MNIST" / "raw"
    (folder / "train-labels-idx1-ubyte.gz").write_bytes((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(DataError, match="40 images and 20 labels of train"):
        opened(mnist_root)
