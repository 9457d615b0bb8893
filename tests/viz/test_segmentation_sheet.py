"""Sheets of segmented images: colours of classes, legends, label maps as files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from visionattn.viz import class_colours, save_label_map, save_segmentation_sheet

NAMES = ["sky", "tree", "road"]


def example(labels: np.ndarray, predicted: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(image=np.full((*labels.shape, 3), 100, np.uint8), labels=labels, predicted=predicted)


def test_class_has_one_colour_in_labels_predictions_and_legend(tmp_path: Path) -> None:
    labels, predicted = np.full((64, 64), 2), np.full((64, 64), 2)
    labels[:32], predicted[:32] = -1, 1
    path = save_segmentation_sheet([example(labels, predicted)] * 2, NAMES, tmp_path / "s.png", height=64)
    sheet = np.asarray(Image.open(path)).astype(int)
    assert sheet.shape == (6 + 26 + 2 * 70, 6 + 3 * 70 + 236, 3)
    image, true, found, legend = (sheet[32:96, 6 + 70 * column :] for column in range(4))
    assert (image[:, :64] == 100).all()
    assert (true[:32, :64] == 100).all()  # unlabelled pixels have no colour
    assert (true[32:, :64] == found[32:, :64]).all()
    colours = class_colours(3).astype(int)
    for number, line in ((2, 0), (1, 1)):  # the largest class comes first
        assert (legend[16 * line : 16 * line + 11, :11] == colours[number]).all()
    drawn = (0.35 * 100 + 0.65 * colours[[1, 2]]).round()
    assert (found[0, 0] == drawn[0]).all()
    assert (found[40, 0] == drawn[1]).all()


def test_colours_of_many_classes_differ() -> None:
    assert len(np.unique(class_colours(133), axis=0)) == 133
    assert (class_colours(200)[:133] == class_colours(133)).all()


@pytest.mark.parametrize(("classes", "mode"), [(133, "L"), (3688, "I;16")])
def test_label_map_keeps_class_numbers(tmp_path: Path, classes: int, mode: str) -> None:
    labels = np.array([[0, 5], [classes - 1, 7]])
    with Image.open(save_label_map(labels, classes, tmp_path / "maps" / "a.png")) as image:
        assert image.mode == mode
        assert np.asarray(image).tolist() == labels.tolist()


def test_sheet_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images to draw"):
        save_segmentation_sheet([], NAMES, tmp_path / "s.png")
