"""Confusion matrices from 2 to 1000 classes."""

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.viz import confusion
from visionattn.viz.confusion import save_confusion_matrix


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures instead of saving them."""
    figures = []
    original = confusion.save_figure
    monkeypatch.setattr(
        confusion, "save_figure", lambda figure, path: [original(figure, path), figures.append(figure)][0]
    )
    return figures


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_matrix_of_few_classes_shows_names_and_counts(tmp_path, drawn):
    matrix = torch.tensor([[7, 3], [0, 10]])
    path = save_confusion_matrix(matrix, ["cat", "dog"], tmp_path / "new" / "m.png")
    with Image.open(path) as image:
        assert min(image.size) > 300
    axes = drawn[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    # Rows are true classes: 3 cats were taken for dogs, in column 1 of row 0.
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "7"),
        ((1, 0), "3"),
        ((1, 1), "10"),
    }
    assert axes.get_title() == "85.00% of 20 images are right"
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.7, 0.3], [0, 1]])


@pytest.mark.parametrize("size", [37, 1000])
def test_matrix_of_many_classes_lists_the_most_frequent_mistakes(tmp_path, drawn, size):
    matrix = np.eye(size, dtype=np.int64) * 90
    matrix[3, 30] = 10
    matrix[20, 7] = 2
    save_confusion_matrix(matrix, [f"class {index}" for index in range(size)], tmp_path / "m.png")
    axes, mistakes = drawn[0].axes[:2]
    assert texts(mistakes)[1:] == ["10", "class 3 → class 30", "2", "class 20 → class 7"]
    shown = axes.images[0].get_array()
    # However many classes share a cell, a single confusion stays visible: 10 of class 3's 100 images.
    assert len(shown) <= 250
    pool = size // len(shown)
    assert shown[3 // pool, 30 // pool] == pytest.approx(0.1)


def test_class_without_images_is_an_empty_row(tmp_path, drawn):
    save_confusion_matrix([[5, 0], [0, 0]], [], tmp_path / "m.png")
    axes = drawn[0].axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array()[1], [0, 0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"square, got shape \(2, 3\)"):
        save_confusion_matrix(np.zeros((2, 3)), ["a", "b"], tmp_path / "m.png")
    with pytest.raises(ValueError, match="3 class names for a confusion matrix of 2 classes"):
        save_confusion_matrix(np.eye(2), ["a", "b", "c"], tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.xls: its suffix must be one of \.png"):
        save_confusion_matrix(np.eye(2), ["a", "b"], tmp_path / "m.xls")
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_bytes_and_with_dollars_are_drawn(tmp_path, drawn):
    save_confusion_matrix(np.eye(2), ["caf\udce9", r"$\frac{"], tmp_path / "few.svg")
    text = (tmp_path / "few.svg").read_text(encoding="utf-8")
    assert r"<!-- caf\xe9 -->" in text
    assert r"<!-- $\frac{ -->" in text
    save_confusion_matrix(np.ones((30, 30)), ["caf\udce9$"] * 30, tmp_path / "many.svg")
