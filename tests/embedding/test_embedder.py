"""Features of files: those that probing caches, in the order of the files, whatever is broken or killed on the way."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import visionattn
from tests.processes import KILLED, kill_this_process, run_in_child
from visionattn.data import UnreadableImageError, read_image
from visionattn.data.file_sources import list_images
from visionattn.embedding import Embedder, Embeddings, embed, embed_to_file
from visionattn.embedding.embedder import Pooling
from visionattn.evaluation.source import LoadedModel, load_model
from visionattn.probing import FeatureOptions, ProbingData, ProbingSession
from visionattn.probing.features import cache

QUICK: Any = {"device": "cpu", "num_workers": 0, "batch_size": 4}


@pytest.fixture(scope="module")
def vit() -> LoadedModel:
    """Build a small ViT with a class token and random weights, for images of 32 pixels."""
    with pytest.warns(UserWarning, match="random weights"):
        return load_model("vit_nano_patch4_32", pretrained=False)


@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_features_equal_those_that_probing_caches(
    pooling: Pooling, vit: LoadedModel, colour_folder: Path, tmp_path: Path
) -> None:
    data = ProbingData(root=str(colour_folder), num_workers=0, batch_size=4)
    options = FeatureOptions(layers=[1], dtype="float32", cache=tmp_path / "cache")
    ProbingSession(vit, data, options, device="cpu").run(["knn"])
    (cached,) = (tmp_path / "cache").glob(f"*-validation-*/view0/*.1.{pooling}.npy")
    found = embed(vit, colour_folder / "val", layer=1, pooling=pooling, **QUICK)
    assert [Path(name).relative_to(colour_folder / "val").as_posix() for name in found.names] == [
        f"{colour}/{number}.jpg" for colour in ("blue", "green", "red") for number in range(3)
    ]
    assert np.array_equal(found.features, np.load(cached))


def test_features_equal_those_of_timm(vit: LoadedModel, colour_folder: Path) -> None:
    files = sorted(map(str, (colour_folder / "train" / "red").iterdir()))
    images = torch.stack([vit.transform()(read_image(file)) for file in files])
    with torch.inference_mode():
        tokens = vit.model.forward_features(images).numpy()
    found = embed(vit, files, pooling="tokens", **QUICK)
    assert found.features.shape == tokens.shape
    np.testing.assert_allclose(found.features, tokens, atol=1e-5)
    np.testing.assert_allclose(embed(vit, files, **QUICK).features, tokens[:, 0], atol=1e-5)
    mean = embed(vit, files, pooling="gap", normalize=True, **QUICK).features
    np.testing.assert_allclose(mean, F.normalize(torch.from_numpy(tokens[:, 1:].mean(1)), dim=1), atol=1e-5)
    assert found.about["num_prefix_tokens"] == 1
    assert found.about["grid"] == [8, 8]


def test_checkpoint_is_named_and_keeps_its_preprocessing(checkpoint: Path, colour_folder: Path) -> None:
    found = visionattn.embed(str(checkpoint), colour_folder / "train" / "blue", **QUICK)
    assert isinstance(found, visionattn.Embeddings)
    assert found.about["checkpoint"] == str(checkpoint)
    assert found.about["preprocessing"]["input_size"] == [3, 32, 32]
    assert (found.about["pooling"], found.about["layer"]) == ("gap", "last")
    assert found.features.shape == (4, 96)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_file_holds_what_is_returned(suffix: str, vit: LoadedModel, colour_folder: Path, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"features{suffix}"
    written = embed_to_file(path, Embedder(vit, **QUICK), [colour_folder / "train"], dtype="float16")
    there, expected = Embeddings.load(path), embed(vit, colour_folder / "train", dtype="float16", **QUICK)
    assert there.names == expected.names == written.files
    assert np.array_equal(there.features, expected.features)
    assert there.about == expected.about
    assert sorted(child.name for child in tmp_path.iterdir()) == ["colours", path.name], "no unfinished work remains"


def test_broken_images_are_left_out_by_name(vit: LoadedModel, colour_folder: Path, tmp_path: Path) -> None:
    red = colour_folder / "train" / "red"
    (red / "1.jpg").write_bytes(b"no image")
    written = embed_to_file(tmp_path / "f.npz", Embedder(vit, **QUICK), [red])
    assert written.unreadable == [f"{red}/1.jpg: not an image that Pillow knows"]
    assert Embeddings.load(tmp_path / "f.npz").names == [f"{red}/{number}.jpg" for number in (0, 2, 3)]
    with pytest.raises(UnreadableImageError, match=r"1\.jpg: not an image .* pass --on_error skip"):
        embed(vit, red, on_error="raise", **QUICK)
    with pytest.raises(ValueError, match=r"not one image could be read: .*1\.jpg: not an image"):
        embed(vit, red / "1.jpg", **QUICK)


def test_killed_extraction_resumes(
    vit: LoadedModel, colour_folder: Path, tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of four images: those that were written before the kill are not computed again, nor forgotten."""
    monkeypatch.setattr(cache, "SHARD_ROWS", 4)
    path, train = tmp_path / "f.npz", colour_folder / "train"
    (train / "blue" / "2.jpg").write_bytes(b"no image")
    expected = embed(vit, train, **QUICK)
    read.clear()

    def until_killed() -> None:
        embedder = Embedder(vit, **QUICK)
        embedder.progress = lambda *_: nullcontext(lambda done, total: done > 8 and kill_this_process())
        embed_to_file(path, embedder, [train])

    assert run_in_child(until_killed) == KILLED
    assert not path.exists()
    written = embed_to_file(path, Embedder(vit, **QUICK), [train])
    assert sum(read) == 4, "eight of the twelve were done"
    assert written.unreadable == [f"{train}/blue/2.jpg"]
    found = Embeddings.load(path)
    assert found.names == expected.names
    assert np.array_equal(found.features, expected.features)


def test_places_that_hold_no_images_are_named(vit: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such image or folder: .*absent"):
        embed(vit, tmp_path / "absent", **QUICK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images under .*empty"):
        embed(vit, tmp_path / "empty", **QUICK)


def test_image_is_listed_once(colour_folder: Path) -> None:
    red = colour_folder / "train" / "red"
    files = [f"{red}/{number}.jpg" for number in (3, 0, 1, 2)]
    assert list_images([red / "3.jpg", red, red / "0.jpg"]) == files


def test_options_without_a_meaning_are_refused(vit: LoadedModel, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="--pooling cls: test_resnet has no class token there; take gap"):
        Embedder(load_model(checkpoint), pooling="cls")
    with pytest.raises(ValueError, match="has no layer 99"):
        Embedder(vit, layer=99)
    with pytest.raises(ValueError, match="--batch_size must be at least 1"):
        Embedder(vit, batch_size=0)


def test_images_need_not_be_square(checkpoint: Path, colour_folder: Path) -> None:
    loaded = load_model(checkpoint)
    tall = loaded._replace(
        spec=replace(loaded.spec, preprocessing={**loaded.spec.preprocessing, "input_size": (3, 64, 32)})
    )
    embedder = Embedder(tall, **QUICK)
    assert embedder.about["preprocessing"]["input_size"] == [3, 64, 32]
    with embedder.extract(list_images([colour_folder / "val"])) as found:
        assert found.array().shape == (9, 96)
    assert Embedder(tall, img_size=48, device="cpu").about["preprocessing"]["input_size"] == [3, 48, 48]
