"""Transforms by import path: what they are called with, where they are used, and what is remembered of them."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from visionattn.data import DataError, ImageClassificationData
from visionattn.data.own_transform import OwnTransform
from visionattn.evaluation import ImageOptions, open_images
from visionattn.training import ModelSpec

SOURCE = """
import torch
from torchvision.transforms import v2

def make(preprocessing, training):
    calls.append((preprocessing, training))
    grey = 51 if training else 102
    return lambda image: torch.full(preprocessing["input_size"], grey, dtype=torch.uint8)

calls = []
floats = v2.Compose([v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
noise = v2.Lambda(lambda image: torch.rand(3, 16, 16))
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "own_steps.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "module")
    monkeypatch.delitem(sys.modules, "own_steps", raising=False)


def opened(root: Path, **options: str | None) -> ImageClassificationData:
    plain = {"mean": [0.2] * 3, "std": [0.5] * 3, "img_size": 16, "batch_size": 4, "num_workers": 0, "seed": 0}
    data = ImageClassificationData(root=str(root), **plain, **options)
    data.setup("fit")
    return data


def test_function_makes_both_transforms_and_bytes_are_normalised(colour_folder: Path) -> None:
    data = opened(colour_folder, transform="own_steps.make")
    assert [training for _, training in sys.modules["own_steps"].calls] == [False, True]
    assert sys.modules["own_steps"].calls[0][0]["input_size"] == (3, 16, 16)
    for loader, value in ((data.train_dataloader(), 0.0), (data.val_dataloader(), 0.4)):
        images = next(iter(loader)).to("cpu").image
        torch.testing.assert_close(images, torch.full_like(images, value))


def test_object_is_the_transform_and_floats_are_normalised_already(colour_folder: Path) -> None:
    data = opened(colour_folder, transform="own_steps.floats")
    images = next(iter(data.val_dataloader())).to("cpu").image
    assert 0 <= images.min() <= images.max() <= 1


def test_training_images_may_have_a_transform_of_their_own(colour_folder: Path) -> None:
    data = opened(colour_folder, train_transform="own_steps.make")
    assert [training for _, training in sys.modules["own_steps"].calls] == [True]
    assert (next(iter(data.train_dataloader())).image == 51).all()
    assert len(next(iter(data.val_dataloader())).image.unique()) > 1
    assert "own_transform" not in data.preprocessing, "evaluation needs none"


def test_random_transform_is_seeded_as_others(colour_folder: Path) -> None:
    first, second = (
        next(iter(opened(colour_folder, train_transform="own_steps.noise").train_dataloader())).image for _ in range(2)
    )
    assert torch.equal(first, second)


def test_transform_pickles_by_its_path() -> None:
    transform = OwnTransform("transform", "own_steps.make", {"input_size": (3, 4, 4)}, training=True)
    again = pickle.loads(pickle.dumps(transform))
    assert (again(Image.new("RGB", (9, 9))) == 51).all()


def test_model_remembers_the_path_and_evaluation_asks_for_it(colour_folder: Path) -> None:
    data = opened(colour_folder, transform="own_steps.make")
    spec = ModelSpec("resnet_pico", {}, 3, data.class_names, data.preprocessing, "folder")
    stored = ModelSpec.from_dict(spec.to_dict())
    del sys.modules["own_steps"]
    options = {"root": str(colour_folder), "num_workers": 0}
    with pytest.warns(UserWarning, match=r"own transform own_steps.make, which is not imported unless .* --data.trans"):
        open_images(stored, ImageOptions(**options))
    assert "own_steps" not in sys.modules, "a checkpoint decides nothing that is imported"
    module = open_images(stored, ImageOptions(**options, transform="own_steps.make"))
    assert (next(iter(module.val_dataloader())).image == 102).all()


def test_sequences_are_made_of_what_it_returns(colour_folder: Path) -> None:
    data = opened(colour_folder, transform="own_steps.make", sequence="pixels")
    assert next(iter(data.val_dataloader())).image.shape[1:] == (3, 1, 256)


def test_path_has_a_module() -> None:
    with pytest.raises(DataError, match=r"--data.transform make is no import path: write MODULE\.NAME"):
        ImageClassificationData(transform="make")
