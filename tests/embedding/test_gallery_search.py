"""Search in a gallery: ranks by cosine similarity, without the query itself, from an index that is kept."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import visionattn
from visionattn.cli.search import save_sheet
from visionattn.embedding import Hit, Index, SearchResult, embed, search
from visionattn.viz.image import read_pixels

QUICK: Any = {"device": "cpu", "num_workers": 0, "batch_size": 4}


@pytest.fixture
def gallery(colour_folder: Path) -> Path:
    return colour_folder / "train"


def test_hits_are_ranked_as_by_brute_force(checkpoint: Path, gallery: Path, colour_folder: Path) -> None:
    queries = colour_folder / "val"
    result = visionattn.search(queries, gallery=gallery, model=checkpoint, topk=5, **QUICK)
    ours, theirs = (embed(checkpoint, folder, normalize=True, **QUICK) for folder in (queries, gallery))
    products = (ours.features.astype(np.float64) @ theirs.features.T.astype(np.float64)).astype(np.float32)
    expected = [
        Hit(query, rank, theirs.names[place], float(row[place]))
        for query, row in zip(ours.names, products, strict=True)
        for rank, place in enumerate(np.argsort(-row, kind="stable")[:5], start=1)
    ]
    assert [hit[:3] for hit in result.hits] == [hit[:3] for hit in expected]
    assert [hit.similarity for hit in result.hits] == pytest.approx([hit.similarity for hit in expected], abs=1e-6)
    assert isinstance(result, SearchResult)
    assert isinstance(result.index, visionattn.Index)


def test_query_of_the_gallery_does_not_find_itself_but_its_copies(
    checkpoint: Path, gallery: Path, tmp_path: Path
) -> None:
    shutil.copy(gallery / "red" / "0.jpg", gallery / "copy.jpg")
    (tmp_path / "link.jpg").symlink_to(gallery / "red" / "0.jpg")
    for query in (gallery / "red" / "0.jpg", tmp_path / "link.jpg"):
        (first, *others) = search(query, gallery=gallery, model=checkpoint, topk=20, **QUICK).hits
        assert first.file == str(gallery / "copy.jpg")
        assert first.similarity == pytest.approx(1)
        assert len(others) == 11, "all images but the query"
    (moved,) = search(
        shutil.copy(gallery / "red" / "0.jpg", tmp_path), gallery=gallery, model=checkpoint, topk=1, **QUICK
    ).hits
    assert moved.file == str(gallery / "copy.jpg"), "first of the two by name"


def test_index_knows_its_model_and_gallery(
    checkpoint: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, query = tmp_path / "photos.idx", gallery.parent / "val" / "red" / "0.jpg"
    first = search(query, gallery=gallery, index=index, model=checkpoint, layer=1, **QUICK)
    written = index.stat().st_mtime_ns
    again = search(query, index=index, **QUICK)
    assert search(query, gallery=gallery, index=index, **QUICK).hits == first.hits
    assert index.stat().st_mtime_ns == written, "nothing has changed"
    assert again.hits == first.hits
    assert (first.changes or ())[:3] == (12, 0, 0)
    assert again.changes is None
    monkeypatch.chdir(gallery.parent)
    assert search(query, index=index, topk=1, **QUICK).hits[0].file.startswith("train/"), "relative to where we are"
    shutil.rmtree(gallery / "red")
    assert {Path(hit.file).parent.name for hit in search(query, gallery="train", index=index, **QUICK).hits} == {
        "blue",
        "green",
    }
    assert len(Index.load(index)) == 8


def test_no_query_brings_the_index_up_to_date(checkpoint: Path, gallery: Path, tmp_path: Path) -> None:
    result = search([], gallery=gallery, index=tmp_path / "photos.idx", model=checkpoint, **QUICK)
    assert (result.hits, len(Index.load(tmp_path / "photos.idx"))) == ([], 12)


def test_queries_of_the_gallery_are_not_read_again(
    checkpoint: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "photos.idx"
    search([], gallery=gallery, index=index, model=checkpoint, **QUICK)

    def fail(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr("visionattn.probing.frozen.FrozenBackbone.forward", fail)
    result = search(gallery, gallery=gallery, index=index, topk=3, **QUICK)
    assert len(result.hits) == 36
    assert all(hit.query != hit.file for hit in result.hits)


def test_features_are_those_of_the_index(checkpoint: Path, gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "photos.idx"
    search([], gallery=gallery, index=index, model=checkpoint, layer=0, img_size=48, **QUICK)
    about = Index.load(index).about
    result = search(gallery.parent / "val", index=index, **QUICK)
    assert {key: result.index.about[key] for key in ("layer", "preprocessing")} == {
        key: about[key] for key in ("layer", "preprocessing")
    }
    expected = embed(checkpoint, gallery, layer=0, img_size=48, normalize=True, **QUICK)
    torch.testing.assert_close(result.index.features, torch.from_numpy(expected.features))


def test_images_of_five_channels_are_found_and_drawn(tmp_path: Path) -> None:
    folder, generator = tmp_path / "five", np.random.default_rng(0)
    folder.mkdir()
    images = generator.integers(0, 256, (3, 5, 32, 32), dtype=np.uint8)
    np.save(folder / "0.npy", images[0])
    for number in (1, 2):
        first, *others = map(Image.fromarray, images[number])
        first.save(folder / f"{number}.tif", save_all=True, append_images=others)
    np.save(tmp_path / "query.npy", images[1])
    loaded = visionattn.load_model("nat_pico.cifar10", model_kwargs={"in_chans": 5})
    result = search(tmp_path / "query.npy", gallery=folder, model=loaded, **QUICK)
    assert len(result.index) == 3
    assert (result.hits[0].file, result.hits[0].similarity) == (str(folder / "1.tif"), pytest.approx(1))
    save_sheet(tmp_path / "hits.png", result.hits, 1, 5)
    assert (np.asarray(Image.open(tmp_path / "hits.png"))[20:100, 20:100].std((0, 1)) > 0).all()
    np.testing.assert_array_equal(read_pixels(folder / "1.tif", 5), images[1][:3].transpose(1, 2, 0))
    transform = loaded.transform()
    expected = loaded.model.forward_features(torch.stack([transform(image) for image in images]))
    pooled = expected.detach().reshape(3, *expected.shape[1:]).numpy()
    found = embed(loaded, folder, **QUICK).features
    axes = (2, 3) if pooled.shape[1] == found.shape[1] else (1, 2)
    np.testing.assert_allclose(found, pooled.mean(axes), atol=1e-4)
