"""Sizes and numbers at and beyond their bounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from visionattn.data import DataError, ImageClassificationData
from visionattn.data.transforms import MAX_SIZE, MiddlePart

Run = Callable[..., Any]
Fails = Callable[..., str]
Quick = tuple[str, ...]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 100)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop_mode": "squash"},
        {"crop_mode": "border"},
        {"no_aug": True},
        {"crop_from": 64},
        {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 1.0},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_images_of_any_size_are_resized_to_the_model(size: tuple[int, int], options: dict[str, Any]) -> None:
    data = ImageClassificationData(root="x", img_size=64, **options)
    for training in (True, False):
        image = data._transforms[training](Image.new("RGB", size, (200, 100, 50)))
        assert image.shape == (3, 64, 64)
        assert image.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"no_aug": True}, {"crop_padding": 4}], ids=["plain", "no_aug", "padding"])
def test_very_long_image_is_cropped_before_it_is_enlarged(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, resize = [], Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    data = ImageClassificationData(root="x", img_size=64, **options)
    for training in (True, False):
        data._transforms[training](Image.new("RGB", (1, 5000)))
    assert 0 < max(max(size) for size in sizes) < 64 * 25


def test_middle_of_a_long_image_equals_the_center_crop() -> None:
    image = Image.linear_gradient("L").resize((10, 1000)).convert("RGB")
    middle = MiddlePart()(image)
    assert middle.size == (10, 200)
    assert middle.tobytes() == image.crop((0, 400, 10, 600)).tobytes()
    assert MiddlePart()(middle) is middle


@pytest.mark.parametrize("size", [0, -3, MAX_SIZE + 1])
def test_impossible_image_size_is_an_error(size: int) -> None:
    with pytest.raises(DataError, match=f"--data.img_size must be at least 1 and at most 16384, got {size}"):
        ImageClassificationData(img_size=size)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            ["--model.name=test_vit", "--data.img_size=33"],
            "its input height, 33, should be divisible by patch size (16); pass --data.img_size N, or --model.model_k",
            id="patches",
        ),
        pytest.param(
            ["--model.name=dcal_vit_pico", "--data.img_size=48"],
            "its input height, 48, doesn't match model (32); pass --data.img_size N, or --model.model_kwargs",
            id="DCAL",
        ),
        pytest.param(
            ["--model.name=terminator_pico", "--data.img_size=28"],
            "the model takes images [B, C, 32, 32]; got [4, 3, 28, 28]: resize them, or call set_input_size or build",
            id="Terminator",
        ),
        pytest.param(
            ["--model.model_kwargs={in_chans: 1}"],
            "the model takes images of 1 channels, and these have 3: leave out in_chans of --model.model_kwargs",
            id="channels",
        ),
        pytest.param(
            ["--data.batch_size=1"],
            "batch norm finds nothing to average over one image: pass --data.batch_size 2 or more",
            id="batch norm",
        ),
    ],
)
def test_image_size_that_does_not_fit_the_model_is_an_error(
    fails: Fails, quick: Quick, options: list[str], says: str
) -> None:
    fails("fit", *quick, *options, says=says)
    assert not list(Path("runs").glob("*/*"))


@pytest.mark.parametrize("name", ["nat_pico", "halo_pico"])
def test_images_smaller_than_a_window_are_classified(command: Run, quick: Quick, name: str) -> None:
    assert command("fit", *quick, f"--model.name={name}", "--data.img_size=5").status == 0


def test_last_batch_of_one_image_does_not_change_batch_norm(colour_folder: Path) -> None:
    """13 images in batches of 4: the last image is dropped in this epoch."""
    Image.new("RGB", (8, 8)).save(colour_folder / "train" / "red" / "9.jpg")
    data = ImageClassificationData(root=str(colour_folder), img_size=16, batch_size=4, num_workers=0)
    data.setup("fit")
    assert [len(batch.image) for batch in data.train_dataloader()] == [4, 4, 4]
    assert [len(batch.image) for batch in data.val_dataloader()] == [4, 4, 1]


def test_overflowing_logits_are_an_error(
    digits_checkpoint: Path, fails: Fails, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite weights with infinite logits; weights that are not finite are refused when they are read."""
    content = torch.load(digits_checkpoint, weights_only=True)
    content["state_dict"]["model.fc.weight"].fill_(3e38)
    torch.save(content, digits_checkpoint)
    says = "test_resnet gives no finite numbers for digits/"
    fails("classify", "--device=cpu", f"--checkpoint={digits_checkpoint}", says=says)
    start = f"--model.checkpoint_path={digits_checkpoint}"
    fails("fit", *quick, start, says="the loss became ")
    fails("validate", *quick, start, says=says)
