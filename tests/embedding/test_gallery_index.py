"""Index of a gallery: an update reads new and changed images alone, and ends as an index that is built at once."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.embedding import Embedder, Index
from visionattn.evaluation.source import load_model

QUICK: Any = {"device": "cpu", "num_workers": 0, "batch_size": 4, "normalize": True}


@pytest.fixture
def gallery(colour_folder: Path) -> Path:
    return colour_folder / "train"


@pytest.fixture
def embedder(checkpoint: Path) -> Embedder:
    return Embedder(load_model(checkpoint), **QUICK)


def build(embedder: Embedder, gallery: Path) -> Index:
    return Index.empty(embedder).updated(embedder, gallery)[0]


def save_image(path: Path, colour: tuple[int, int, int]) -> None:
    Image.new("RGB", (40, 32), colour).save(path)


def assert_same(one: Index, other: Index) -> None:
    assert one.names == other.names
    assert np.array_equal(one.states, other.states)
    torch.testing.assert_close(one.features, other.features, atol=1e-6, rtol=0)  # batches differ
    assert one.about == other.about


def test_index_is_read_as_it_was_written(embedder: Embedder, gallery: Path, tmp_path: Path) -> None:
    (gallery / "red" / "0.jpg").rename(gallery / "red" / os.fsdecode(b"caf\xe9.jpg"))  # not UTF-8
    index = build(embedder, gallery)
    index.save(tmp_path / "photos.idx")
    found = Index.load(tmp_path / "photos.idx")
    assert_same(found, index)
    assert found.root == gallery.absolute()
    assert torch.equal(found.features, index.features)
    assert all(Path(found.file(place)).is_file() for place in range(12))
    torch.testing.assert_close(found.features.norm(dim=1), torch.ones(12))


def test_update_reads_new_and_changed_images_alone(
    embedder: Embedder, gallery: Path, tmp_path: Path, read: list[int]
) -> None:
    index = build(embedder, gallery)
    assert sum(read) == 12
    read.clear()
    unchanged, changes = index.updated(embedder, gallery)
    assert (changes, read) == ((0, 0, 0, []), [])
    assert_same(unchanged, index)
    save_image(gallery / "blue" / "10.jpg", (1, 2, 3))
    save_image(gallery / "green" / "1.jpg", (250, 250, 0))
    (gallery / "red" / "2.jpg").unlink()
    (gallery / "new.jpg").write_bytes(b"no image")
    updated, changes = index.updated(embedder, gallery)
    assert changes == (1, 1, 1, [f"{gallery}/new.jpg: not an image that Pillow knows"])
    assert sum(read) == 2
    assert updated.names[:5] == [*(f"blue/{number}.jpg" for number in (0, 1, 2, 3, 10))]
    assert_same(updated, build(embedder, gallery))
    # An image that stays broken is no error, and is named each time.
    assert updated.updated(embedder, gallery)[1] == (0, 0, 0, changes.unreadable)


def test_index_follows_a_folder_that_moved(embedder: Embedder, gallery: Path, tmp_path: Path, read: list[int]) -> None:
    index = build(embedder, gallery)
    read.clear()
    moved, changes = index.updated(embedder, shutil.move(gallery, tmp_path / "moved"))
    assert (changes[:3], read, moved.root) == ((0, 0, 0), [], tmp_path / "moved")


def test_gallery_of_other_images_is_refused(embedder: Embedder, gallery: Path, tmp_path: Path) -> None:
    index = build(embedder, gallery)
    save_image(tmp_path / "one.jpg", (1, 2, 3))
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "one.jpg", tmp_path / "other")
    with pytest.raises(ValueError, match="has none of its images: name another --index for this gallery"):
        index.updated(embedder, tmp_path / "other")


def test_date_alone_makes_an_image_new(embedder: Embedder, gallery: Path, read: list[int]) -> None:
    index = build(embedder, gallery)
    read.clear()
    os.utime(gallery / "red" / "0.jpg", ns=(0, 1))
    assert index.updated(embedder, gallery)[1][:3] == (0, 1, 0)
    assert read == [1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layer": 1}, "made with layer last, not 1: leave out --layer, or name another --index"),
        (
            {"img_size": 48},
            r"made with preprocessing input_size \[3, 32.*, not input_size \[3, 48.*: leave out --img_size",
        ),
        ({"precision": "bf16-mixed"}, "made with precision 32-true, not bf16-mixed: leave out --precision"),
    ],
    ids=["layer", "preprocessing", "precision"],
)
def test_features_of_another_kind_are_refused(
    options: dict[str, Any], says: str, embedder: Embedder, gallery: Path, checkpoint: Path
) -> None:
    other = Embedder(load_model(checkpoint), **QUICK, **options)
    with pytest.raises(ValueError, match=f"photos.idx was {says}"):
        build(embedder, gallery).check_model(other.about, "photos.idx")


def test_other_weights_are_refused(embedder: Embedder, gallery: Path, checkpoint: Path) -> None:
    index = build(embedder, gallery)
    loaded = load_model(checkpoint)
    with torch.no_grad():
        next(loaded.model.parameters())[0] += 1e-3
    other = Embedder(loaded, **QUICK)
    with pytest.raises(ValueError, match=r"was made with weights \w+ of test_resnet, not \w+ of test_resnet"):
        index.check_model(other.about, "photos.idx")
    index.check_model(Embedder(index.load_model(), **QUICK).about, "photos.idx")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
def test_damaged_index_is_named(damage: str, embedder: Embedder, gallery: Path, tmp_path: Path) -> None:
    path = tmp_path / "photos.idx"
    build(embedder, gallery).save(path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-100], "empty": b"", "text": b"hello" * 100, "other": whole}[damage])
    if damage == "other":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"photos\.idx is damaged, or no index of visionattn search: remove it"):
        Index.load(path)


@pytest.mark.parametrize(
    "described",
    [
        {"model": "hf-hub:someone/else"},
        {"model": "local-dir:/elsewhere"},
        {"model_kwargs": {"pretrained_cfg_overlay": {"url": "https://example.org/x.bin"}}},
        {"model_kwargs": {"pretrained_cfg": {"hf_hub_id": "someone/else"}}},
    ],
    ids=["hub", "folder", "address", "config"],
)
def test_index_does_not_cause_other_places_to_be_read(
    described: dict[str, Any], embedder: Embedder, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build(embedder, gallery)
    index.about.update({"checkpoint": None, "origin": "pretrained", **described})
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("a model was made"))
    with pytest.raises(ValueError, match="which is not fetched because a file says so: if you trust it, pass --model"):
        index.load_model()
