"""Balanced classes, and subsets of images with several labels."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from visionattn.data import DataError, ImageClassificationData
from visionattn.data.balance import count_classes, weigh_images
from visionattn.data.file_sources import FileSource
from visionattn.data.labels import MultiLabelSource
from visionattn.data.subsets import first_per_class, hold_out


def labels_of(images: int, shares: list[float], seed: int = 0) -> np.ndarray:
    """Draw whether each image has each label, of which each has a share of the images."""
    return np.random.default_rng(seed).random((images, len(shares))) < shares


def several(labels: np.ndarray) -> MultiLabelSource:
    names = {str(number): number for number in range(labels.shape[1])}
    return MultiLabelSource([f"{number}.jpg" for number in range(len(labels))], labels, names, "RGB")


def test_weights_make_classes_equally_likely() -> None:
    targets = [0] * 90 + [1] * 9 + [3]
    assert count_classes(targets, 5).tolist() == [90, 9, 0, 1, 0]
    weights = weigh_images(targets)
    for label in (0, 1, 3):
        assert sum(weight for weight, target in zip(weights.tolist(), targets, strict=True) if target == label) == (
            pytest.approx(1)
        )


def test_rarest_label_of_an_image_decides_its_weight() -> None:
    labels = labels_of(200, [0.7, 0.3, 0.05])
    counts = [int(sum(row[label] for row in labels)) for label in range(3)]
    none = sum(not any(row) for row in labels)
    expected = [1 / min([count for count, has in zip(counts, row, strict=True) if has] or [none]) for row in labels]
    assert none > 1
    assert weigh_images(labels).tolist() == pytest.approx(expected)
    assert count_classes(labels, 3).tolist() == counts


def test_balanced_epoch_draws_rare_classes_as_often_as_others(tmp_path: Path) -> None:
    counts = {"a": 200, "b": 20, "c": 2}
    table = tmp_path / "labels.csv"
    names = [f"{label}{number}.png" for label, count in counts.items() for number in range(count)]
    for name in names:
        (tmp_path / name).touch()
    table.write_text("\n".join(["path,label", *(f"{name},{name[0]}" for name in names)]))
    data = ImageClassificationData(labels=str(table), val_share=0.1, balance="sampler", num_workers=0, seed=0)
    data.setup("fit")
    assert data.class_counts().tolist() == [180, 18, 1], "of images to train on"
    loader = data.train_dataloader()
    drawn: Counter[str] = Counter()
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        draws = [Path(loader.dataset.source.name_of(draw.image)).name[0] for draw in loader.sampler]  # type: ignore[attr-defined]
        assert len(draws) == 199
        drawn.update(draws)
    expected, deviation = 20 * 199 / 3, (20 * 199 * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(number - expected) < 4 * deviation for number in drawn.values()), drawn
    assert len(drawn) == 3


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_each_label_has_its_share_of_held_out_images(share: float) -> None:
    labels = labels_of(300, [0.6, 0.4, 0.2, 0.1, 0.05, 0.02])
    labels[7] = [False, False, False, False, False, True]
    alone = np.zeros((300, 1), bool)
    alone[7] = True
    labels = np.hstack([labels, alone])
    rest, held = hold_out(several(labels), share=share)
    assert sorted([*rest.indices, *held.indices]) == list(range(300))
    assert hold_out(several(labels), share=share)[1].indices == held.indices
    assert abs(len(held) / 300 - share) < 0.05
    for label in range(6):
        assert abs(held.targets()[:, label].sum() / labels[:, label].sum() - share) < 0.15  # type: ignore[call-overload]
        assert held.targets()[:, label].any()  # type: ignore[call-overload]
    assert 7 in rest.indices, "the only image of a label"


def test_one_label_each_is_divided_as_classes_are() -> None:
    classes = np.random.default_rng(1).choice(5, 100, p=[0.5, 0.2, 0.2, 0.06, 0.04])
    single = FileSource([(f"{number}.jpg", int(label)) for number, label in enumerate(classes)], None, "RGB")
    labels = several(np.eye(5, dtype=bool)[classes])
    for options in ({"share": 0.25}, {"count": 2}):
        assert hold_out(labels, **options)[1].indices == hold_out(single, **options)[1].indices  # type: ignore[arg-type]
    assert first_per_class(labels, 3, seed=4).indices == first_per_class(single, 3, seed=4).indices


def test_first_images_of_several_labels_have_all_of_them() -> None:
    labels = labels_of(200, [0.5, 0.2, 0.02])
    kept = first_per_class(several(labels), 5, seed=0)
    for label in range(3):
        assert kept.targets()[:, label].sum() >= min(5, labels[:, label].sum())  # type: ignore[call-overload]
    assert len(kept) <= 5 * 4, "no more than of each label and of images without one"


@pytest.mark.parametrize("balance", [weigh_images, partial(count_classes, num_classes=2)])
def test_images_without_a_class_cannot_be_balanced(balance: Callable[[list[int]], object]) -> None:
    with pytest.raises(DataError, match="images of class -1 cannot be balanced: choose a training split that has"):
        balance([0, -1, 1])


def test_repeats_are_refused_in_a_balanced_draw() -> None:
    with pytest.raises(DataError, match=r"leave out --data\.aug_repeats 3"):
        ImageClassificationData(balance="sampler", aug_repeats=3)
