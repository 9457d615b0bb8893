"""visionattn embed and visionattn search, from the command line to the files that they write."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionattn.__main__ import dispatch
from visionattn.cli.errors import run
from visionattn.embedding import Embeddings, Index

QUICK = ("--device", "cpu", "--num_workers", "0")


@pytest.fixture
def gallery(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work beside a folder `photos` with images of three colours."""
    monkeypatch.chdir(colour_folder)
    shutil.move("train", "photos")
    return Path("photos")


def test_embed_writes_features_of_published_weights(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (gallery / "broken.jpg").write_bytes(b"no image")
    words = ["embed", "nat_pico.cifar10", "photos", "val/red/0.jpg", "--output", "f.npz", "--normalize", *QUICK]
    assert run(dispatch, words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("images 32×32, ")
    assert lines[0].endswith("as nat_pico.cifar10 wants them")
    assert lines[1:] == [
        "f.npz: 13 images, 192 features of layer last (gap)",
        "unreadable images left out: 1",
        "  photos/broken.jpg: not an image that Pillow knows",
    ]
    found = Embeddings.load("f.npz")
    assert found.names[-1] == "val/red/0.jpg"
    assert found.about["origin"] == "pretrained"
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-6)


def test_embed_writes_tokens_of_a_layer_to_parquet(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    words = ["embed", "nat_pico.cifar10", "photos/red", "--output", "f.parquet", "--layer=-2", "--pooling", "tokens"]
    assert run(dispatch, [*words, "--dtype", "float16", *QUICK]) == 0
    assert "f.parquet: 4 images, 64 × 96 features of layer 1 (tokens)" in capsys.readouterr().out
    found = Embeddings.load("f.parquet")
    assert (found.features.shape, found.features.dtype) == ((4, 64, 96), np.float16)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_search_writes_ranks_sheet_and_index(suffix: str, gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "val", "--gallery", "photos", "--model", "nat_pico.cifar10", "--index", "photos.idx"]
    outputs = ["--output", f"hits{suffix}", "--sheet", "hits.png", "--num_examples", "4"]
    assert run(dispatch, [*words, *outputs, "--topk", "3", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "photos.idx: 12 images, 12 new, 0 changed, 0 removed" in out
    assert f"hits{suffix}: 27 rows" in out
    with Path(f"hits{suffix}").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file)) if suffix == ".csv" else json.load(file)
    assert list(rows[0]) == ["query", "rank", "file", "similarity"]
    assert [int(row["rank"]) for row in rows] == [1, 2, 3] * 9
    assert all(Path(row["query"]).parent.name == Path(row["file"]).parent.name for row in rows), "equal colours"
    with Image.open("hits.png") as sheet:
        assert sheet.height > 4 * 128
        assert sheet.width > 4 * 160
    # The index knows the model. Without a gallery it is searched as it is.
    shutil.rmtree("photos/blue")
    assert run(dispatch, ["search", "val/red/0.jpg", "--index", "photos.idx", "--topk", "1", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "photos.idx: 12 images\n" in out
    assert "photos/red/" in out
    assert run(dispatch, ["search", "val/red/0.jpg", "--index", "photos.idx", "--gallery", "photos", *QUICK]) == 0
    assert "photos.idx: 8 images, 0 new, 0 changed, 4 removed" in capsys.readouterr().out
    assert len(Index.load("photos.idx")) == 8


def test_search_without_an_index_leaves_no_file(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "photos/red/0.jpg", "--gallery", "photos", "--model", "nat_pico.cifar10", "--topk", "2"]
    assert run(dispatch, [*words, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "gallery: 12 images, 12 new" in out
    assert "photos/red/1.jpg" in out
    assert sorted(path.name for path in Path().iterdir()) == ["photos", "val"]
