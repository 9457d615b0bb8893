"""Folders under other names than those that a model knows its classes by."""

from pathlib import Path
from typing import Any

import pytest
import torch

from visionattn.data import DataError, ImageClassificationData
from visionattn.data.class_map import read_class_map

NAMES = {"blue": "sky", "green": "grass"}


def data_of(root: Path, **options: Any) -> ImageClassificationData:
    return ImageClassificationData(root=str(root), img_size=16, num_workers=0, **options)


def targets(data: ImageClassificationData) -> list[int]:
    return torch.cat([batch.target for batch in data.val_dataloader()]).tolist()


def test_class_map_is_read_from_a_mapping_a_text_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("blue: sky\ngreen: grass\n")
    (tmp_path / "m.json").write_text('{"blue": "sky", "green": "grass"}')
    forms = (NAMES, "{blue: sky, green: grass}", str(tmp_path / "m.yaml"), str(tmp_path / "m.json"))
    assert [read_class_map(form) for form in forms] == [NAMES] * 4
    assert read_class_map({0: 7}) == {"0": "7"}
    assert read_class_map(None) == {}


def test_class_map_numbers_folders_by_the_names_that_a_model_knows(colour_folder: Path) -> None:
    data = data_of(colour_folder, class_map=NAMES)
    data.expect_classes(["red", "sky", "grass"])
    data.setup("validate")
    assert targets(data) == [1] * 3 + [2] * 3 + [0] * 3


def test_class_map_leads_to_outputs_of_a_head_without_names(colour_folder: Path) -> None:
    data = data_of(colour_folder, class_map={"blue": 2, "green": 0, "red": 1})
    data.expect_head([], 3)
    data.setup("validate")
    data.check_head("m", 3)
    assert targets(data) == [2] * 3 + [0] * 3 + [1] * 3


def test_class_map_puts_folders_of_one_class_together_in_training(colour_folder: Path) -> None:
    data = data_of(colour_folder, class_map={"blue": "cold", "green": "cold"})
    data.setup("fit")
    assert data.class_names == ["cold", "red"]
    assert targets(data) == [0] * 6 + [1] * 3


def test_classes_are_numbered_as_the_head_that_a_training_starts_with(colour_folder: Path) -> None:
    for names, numbered in ((["red", "green", "blue"], [2, 1, 0]), (["red", "green", "teal"], [0, 1, 2])):
        data = data_of(colour_folder)
        data.preferred_classes = names
        data.setup("fit")
        assert targets(data)[::3] == numbered


def test_folders_of_unknown_classes_are_named_with_the_remedy(colour_folder: Path) -> None:
    data = data_of(colour_folder)
    data.expect_classes(["sky", "grass", "red"])
    with pytest.raises(DataError, match=r"--data\.class_map '{blue: CLASS, \.\.\.}'") as error:
        data.setup("validate")
    assert "classes blue, green, which the 3 classes trained on (sky, grass) do not include: " in str(error.value)


def test_misspelt_class_of_a_class_map_is_named_with_its_folder(colour_folder: Path) -> None:
    data = data_of(colour_folder, class_map={"blue": "skye", "green": "grass"})
    data.expect_classes(["sky", "grass", "red"])
    with pytest.raises(DataError, match=r"has class skye, .*\(sky\) .* --data\.class_map '{blue: CLASS, \.\.\.}'"):
        data.setup("validate")


def test_folders_numbered_by_their_order_are_reported(colour_folder: Path) -> None:
    data = data_of(colour_folder)
    data.setup("validate")
    with pytest.warns(
        UserWarning, match="m does not say its classes: blue for output 0, green for output 1, and so on, are a guess"
    ):
        data.check_head("m", 3)
    with pytest.raises(DataError, match="has 3 classes, the head of m has 1000"):
        data.check_head("m", 1000)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("absent.yaml", "cannot read absent.yaml: No such file or directory"),
        ("{blue: [sky", "cannot read {blue: "),
        ({"blue": ["sky"]}, "is no mapping from folders to classes: expected is '{FOLDER: CLASS, ...}'"),
    ],
)
def test_class_map_that_is_none(given: Any, says: str) -> None:
    with pytest.raises(DataError, match=r"--data\.class_map") as error:
        read_class_map(given)
    assert says in str(error.value)


def test_class_map_requires_folders_and_names_missing_ones(colour_folder: Path) -> None:
    with pytest.raises(DataError, match=r"--data\.class_map is for folders of images: digits has classes of its own"):
        ImageClassificationData(name="digits", class_map=NAMES)
    data = data_of(colour_folder, class_map={"bleu": "sky"})
    with pytest.warns(UserWarning, match="--data.class_map has class bleu, of which .* has no folder"):
        data.setup("validate")
