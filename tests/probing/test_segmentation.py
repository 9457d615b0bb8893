"""Segmentation probes: heads, pixels, training, and sessions on small synthetic scenes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import Tensor

import visionattn
from visionattn.data.scenes import SceneData, open_scenes
from visionattn.data.scenes.transforms import SceneTransform
from visionattn.evaluation import LoadedModel
from visionattn.probing import LayerOptions, ProbingScenes, TokenLayout
from visionattn.probing.features import TensorFeatures
from visionattn.probing.features.labelled import LabelledImages
from visionattn.probing.segmentation import SegmentationSession, SegmentationTraining
from visionattn.probing.segmentation.pixels import Corners, LabelledFeatures, classify_pixels, draw_pixels
from visionattn.probing.segmentation.training import PixelTraining

DATA = ProbingScenes(length=12, val_length=4, num_workers=0, batch_size=4)
TRAINING = SegmentationTraining(epochs=4, batch_size=4, pixels=128, lrs=[3e-3, 3e-2])


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return visionattn.load_model("vit_nano_patch4_32.cifar10")


def open_session(loaded: LoadedModel, cache: Path, **options: Any) -> SegmentationSession:
    data, training = options.pop("data", DATA), options.pop("training", TRAINING)
    return SegmentationSession(loaded, data, LayerOptions(cache=cache, **options), training, device="cpu")


def rates(confusion: np.ndarray) -> tuple[float, float, float]:
    """Return mean IoU, pixel accuracy and mean accuracy of the classes that occur, in percent of true labels."""
    right, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    occurs = true > 0
    iou = right[occurs] / (true + predicted - right)[occurs]
    return iou.mean(), right.sum() / true.sum(), (right[occurs] / true[occurs]).mean()


def test_rates_equal_an_independent_confusion_matrix(loaded: LoadedModel, tmp_path: Path) -> None:
    session = open_session(loaded, tmp_path)
    (result,) = session.run()
    images = list(session.segment(result))
    true, predicted = (np.stack([getattr(image, name) for image in images]) for name in ("labels", "predicted"))
    confusion = confusion_matrix(true.ravel(), predicted.ravel(), labels=range(8))
    row = result.row
    assert (row.miou, row.pixel_accuracy, row.mean_accuracy) == pytest.approx(rates(confusion))
    assert row.num_present == len(result.classes) == len(np.unique(true))
    for each in result.classes:
        assert each.name == session.class_names[each.number]
        assert each.pixels == (true == each.number).sum()
        assert each.accuracy == pytest.approx(confusion[each.number, each.number] / each.pixels)
    # Label maps are those of the transformed scenes, whose images the sheet shows.
    scenes = open_scenes("synthetic", split="validation", length=4, image_size=32)
    transform = SceneTransform(session.backbone.preprocessing)
    for image, scene in zip(images, (scenes[number] for number in range(4)), strict=True):
        expected = transform(scene)
        assert (image.labels == expected.classes[expected.segments]).all()
        assert (image.image == expected.image.permute(1, 2, 0).numpy()).all()


def test_predictions_are_argmax_of_upsampled_logits() -> None:
    layout, logits = TokenLayout(8, (3, 5)), torch.randn(2, 15, 40)
    full = F.interpolate(logits.mT.view(2, 40, 3, 5), (13, 22), mode="bilinear", align_corners=False)
    assert (classify_pixels(logits, layout.grid, (13, 22)) == full.argmax(1)).all()
    pixels = torch.arange(13 * 22).expand(2, -1)
    drawn = Corners.of(pixels, layout.grid, (13, 22)).interpolate(logits).view(2, 13, 22, 40)
    torch.testing.assert_close(drawn.permute(0, 3, 1, 2), full)


def test_pixels_are_all_taken_if_few() -> None:
    rng = np.random.default_rng(0)
    assert draw_pixels(rng, 100, 3, (4, 5)).tolist() == [list(range(20))] * 3
    drawn = draw_pixels(rng, 7, 3, (4, 5))
    assert drawn.shape == (3, 7)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 20


def features(labels: Tensor, seed: int = 0) -> LabelledFeatures:
    """Return patches that show their class, after a token that does not count, of label maps `[n, H, W]`."""
    generator = torch.Generator().manual_seed(seed)
    patches = F.one_hot(labels[:, ::4, ::4].flatten(1).clamp(min=0), 4).float()
    noise = torch.randn(patches.shape, generator=generator)
    tokens = torch.cat([torch.full((len(labels), 1, 4), 9.0), patches + 0.1 * noise], 1)
    source = TensorFeatures(tokens, torch.zeros(len(labels), dtype=torch.long), num_prefix_tokens=1)
    return LabelledFeatures(source, TokenLayout(4, (2, 2), 1), lambda rows: labels[torch.from_numpy(rows)])


def create(labels: Tensor, **options: Any) -> PixelTraining:
    candidates, recipe = replace(TRAINING, **options).expand()
    return PixelTraining(features(labels), candidates, 4, recipe, 64, torch.device("cpu"))


def draw_labels(images: int) -> Tensor:
    """Draw label maps of 2 × 2 blocks in three classes."""
    return torch.randint(0, 3, (images, 2, 2)).repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_head_learns_classes_of_patches() -> None:
    training = create(draw_labels(20), epochs=10)
    training.fit()
    (trial,) = training.choose()
    assert trial.best_accuracy > 0.6


def test_unlabelled_pixels_have_no_part_in_training() -> None:
    labels = draw_labels(12)
    half = labels.clone()
    half[:, :, 4:] = -1
    training = create(half)
    training.train_epoch(training.trials, None)
    nothing = create(torch.full_like(labels, -1))
    assert nothing.train_epoch(nothing.trials, None).tolist() == [0, 0]
    for trained, left in zip(training.trials, nothing.trials, strict=True):
        assert not trained.head.classifier.bias.equal(torch.zeros(4))
        assert left.head.classifier.bias.equal(torch.zeros(4))
    assert nothing.judge(nothing.trials) == [0, 0]


def test_share_of_train_is_held_out() -> None:
    training = create(draw_labels(20), held_out=0.3)
    assert (len(training.fitted), len(training.held)) == (14, 6)


def test_killed_training_resumes(tmp_path: Path) -> None:
    labels = draw_labels(12)

    class Killed(Exception):  # noqa: N818
        pass

    def kill(done: int, total: int) -> None:
        if done > total // 2:
            raise Killed

    whole, killed, resumed = (create(labels, epochs=6) for _ in range(3))
    whole.fit()
    with pytest.raises(Killed):
        killed.fit(tmp_path / "state.pt", "a", kill)
    resumed.fit(tmp_path / "state.pt", "a")
    for one, other in zip(whole.trials, resumed.trials, strict=True):
        assert one.losses == other.losses
        assert one.best_accuracy == other.best_accuracy


def test_cache_is_keyed_by_labels_and_size(loaded: LoadedModel, tmp_path: Path) -> None:
    def key(**changes: Any) -> tuple[str, str]:
        session = open_session(loaded, tmp_path, data=replace(DATA, **changes))
        session.extract()
        caches = [split.cache for split in session._splits.values()]
        assert caches[0].labels(np.arange(2)).shape == (2, 32, 32)
        return caches[0].arrays.key, caches[1].arrays.key

    first = key()
    folders = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert key() == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == folders
    assert key(crop_mode="squash") != first
    assert key(limit=8)[0] != first[0]


def test_storage_is_the_size_of_the_cache(loaded: LoadedModel, tmp_path: Path) -> None:
    data = replace(DATA, length=50, val_length=25)
    session = open_session(loaded, tmp_path, data=data)
    session.extract()
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*.npy")) / 1e6
    assert session.storage.startswith(f"{stored:.1f} MB of features and label maps of 75 images")
    online = open_session(loaded, tmp_path, data=data, token_budget_gb=1e-6).storage
    assert "above --features.token_budget_gb 1e-06: the backbone runs in every epoch" in online
    assert float(online.split()[0]) < stored


def test_identity_of_images_holds_their_masks_and_names(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8), 1).save(tmp_path / folder / "a.png")

    def identity() -> dict[str, Any]:
        module = SceneData("semantic_folder", str(tmp_path), image_size=8, num_workers=0)
        module.setup("fit")
        read: list[int] = []
        images = LabelledImages(module, "train", tmp_path / "memory", lambda done, total: read.append(total))
        assert set(read) <= {2, 3}  # each file once
        return dict(images.identity)

    first = identity()
    assert identity() == first
    Image.new("L", (8, 8), 2).save(tmp_path / "labels" / "a.png")
    second = identity()
    assert second != first
    (tmp_path / "class_names.txt").write_text("sky\ntree\nroad")
    assert identity() not in (first, second)


def test_layers_are_probed_together_or_separately(loaded: LoadedModel, tmp_path: Path) -> None:
    training = replace(TRAINING, epochs=1)
    (both,) = open_session(loaded, tmp_path, layers=[1, -1], training=training).run()
    depth = both.row.layers[1]
    apart = open_session(loaded, tmp_path, layers=[1, -1], each_layer=True, training=training).run()
    assert [result.row.layers for result in (both, *apart)] == [[1, depth], [1], [depth]]
    assert both.row.num_parameters - 8 == 2 * (apart[0].row.num_parameters - 8)


def test_tokens_beyond_the_budget_give_the_same_results(loaded: LoadedModel, tmp_path: Path) -> None:
    training = replace(TRAINING, epochs=1)
    options: dict[str, Any] = {"dtype": "float32", "training": training}
    (cached,) = open_session(loaded, tmp_path / "a", **options).run()
    (online,) = open_session(loaded, tmp_path / "b", token_budget_gb=0, **options).run()
    assert online.row.miou == pytest.approx(cached.row.miou, abs=1e-3)
