"""Images of other channels than asked for, arrays that are no images, and transforms that cannot be used."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionattn.data import DataError, ImageClassificationData, UnreadableImageError

Fails = Callable[..., str]
Write = Callable[[Path], object]


def array(dtype: str = "uint8", shape: tuple[int, ...] = (5, 20, 30), value: float = 7) -> Write:
    return lambda place: np.save(place / "x.npy", np.full(shape, value, dtype))


def pages(*shapes: tuple[int, ...]) -> Write:
    first, *others = (Image.fromarray(np.zeros(shape, np.uint8)) for shape in shapes)
    return lambda place: first.save(place / "x.tif", save_all=True, append_images=others)


def colours(place: Path) -> None:
    Image.new("RGB", (30, 20)).save(place / "x.jpg")


def objects(place: Path) -> None:
    np.save(place / "x.npy", np.array([{}, {}], dtype=object))


def two_arrays(place: Path) -> None:
    np.savez(place / "x.npz", a=np.zeros((5, 8, 8)), b=np.zeros((5, 8, 8)))


def cut(place: Path) -> None:
    array()(place)
    (place / "x.npy").write_bytes((place / "x.npy").read_bytes()[:-100])


def cut_archive(place: Path) -> None:
    (place / "x.npz").write_bytes(b"PK\x03\x04 and no more")


def samples(place: Path) -> None:
    (place / "x.tif").write_bytes(b"II*\0" + bytes(40))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        pytest.param(colours, "it has 3 channels, not 5: replace it, or train with in_chans 3", id="JPEG"),
        pytest.param(pages(*[(20, 30)] * 4), "it has 4 channels, not 5", id="pages"),
        pytest.param(pages(*[(20, 30)] * 4, (10, 15)), "its pages are not of one size and type", id="sizes"),
        pytest.param(array(shape=(20, 30, 4)), "its shape is 20×30×4, and neither the first nor the last", id="axis"),
        pytest.param(array(shape=(20, 30)), "its shape is 20×30, and neither the first nor the last", id="no axis"),
        pytest.param(array(shape=(5, 30, 5)), "its shape 5×30×5 leaves open which axis has the 5", id="two axes"),
        pytest.param(array("int32"), "its values are int32, of which none is known to be white", id="integers"),
        pytest.param(array("float32", value=np.nan), "some of its values are not finite numbers", id="NaN"),
        pytest.param(array("float32", value=255), "its values go up to 255, but mean and std are of", id="units"),
        pytest.param(objects, "Object arrays cannot be loaded", id="objects"),
        pytest.param(two_arrays, "it holds 2 arrays, not one: save one image in each file", id="archive"),
        pytest.param(cut_archive, "it is damaged: ", id="damaged archive"),
        pytest.param(cut, "could only read 2900 elements", id="cut"),
        pytest.param(samples, "of more samples per pixel than Pillow reads: pip install", id="samples"),
    ],
)
def test_image_of_other_channels_is_named(
    tmp_path: Path, write: Write, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)  # as if it were not installed
    place = tmp_path / "val" / "a"
    place.mkdir(parents=True)
    write(place)
    data = ImageClassificationData(root=str(tmp_path), in_chans=5, img_size=16, num_workers=0)
    data.setup("validate")
    with pytest.raises(UnreadableImageError) as error:
        list(data.val_dataloader())
    (file,) = place.iterdir()
    assert f"cannot read {file}: " in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            {"auto_augment": "rand-m9"},
            "--data.auto_augment rand-m9 is for images of 1 or 3 channels, not of 5: leave it out",
            id="auto_augment",
        ),
        pytest.param(
            {"interpolation": "lanczos"},
            "--data.interpolation lanczos is for images of 1 or 3 channels, not of 5: choose one of nearest, bilinear",
            id="interpolation",
        ),
        pytest.param({"crop_mode": "border"}, "--data.crop_mode border is for images of 1 or 3 channels", id="border"),
        pytest.param({"mean": [0.5] * 3}, "--data.mean must have 5 values, got [0.5, 0.5, 0.5]", id="mean"),
    ],
)
def test_option_for_colour_images_is_an_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as error:
        ImageClassificationData(root="images", in_chans=5, **options)
    assert says in str(error.value)


def test_data_set_without_files_has_no_other_channels(fails: Fails, quick: tuple[str, ...]) -> None:
    says = "--data.in_chans 5 is for images in files: digits has 1 or 3 channels"
    fails("fit", *quick, "--data.name=digits", "--data.in_chans=5", says=says)


TRANSFORMS = """
import torch
number = 5
def no_tensor(preprocessing, training): return lambda image: image
def shape(preprocessing, training): return lambda image: torch.zeros(3, 8, 8)
def kind(preprocessing, training): return lambda image: torch.zeros(3, 32, 32, dtype=torch.float64)
def raising(preprocessing, training): return lambda image: 1 / 0
def arguments(): return None
def later(preprocessing, training): return lambda image: torch.zeros(3, 32, 32) if image.width > 32 else image.gone
"""


@pytest.fixture
def transforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fault_steps.py").write_text(TRANSFORMS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fault_steps", raising=False)


@pytest.mark.usefixtures("transforms")
@pytest.mark.parametrize(
    ("path", "says"),
    [
        pytest.param("gone.make", "cannot be imported: ModuleNotFoundError: No module named 'gone'; set", id="module"),
        pytest.param("fault_steps.gone", ": there is no gone in ", id="name"),
        pytest.param("fault_steps.number", " is of type int, which cannot be called with an image", id="number"),
        pytest.param("fault_steps.no_tensor", " returns type Image, not a tensor of uint8, or of", id="no tensor"),
        pytest.param("fault_steps.shape", " returns a tensor [3, 8, 8], not [3, 32, 32]: resize to", id="shape"),
        pytest.param("fault_steps.kind", " returns a tensor of torch.float64, not a tensor of uint8", id="kind"),
        pytest.param("fault_steps.raising", " raises ZeroDivisionError: division by zero", id="raising"),
        pytest.param("fault_steps.arguments", "(preprocessing, False) raises TypeError: arguments()", id="arguments"),
    ],
)
def test_transform_that_cannot_be_used_is_named(path: str, says: str) -> None:
    with pytest.raises(DataError) as error:
        ImageClassificationData(transform=path)
    assert str(error.value).startswith(f"--data.transform {path}")
    assert says in str(error.value)


@pytest.mark.usefixtures("transforms")
def test_transform_that_fails_on_one_image_names_it(fails: Fails, quick: tuple[str, ...]) -> None:
    says = ("cannot read digits/", "--data.transform fault_steps.later raises AttributeError: ")
    fails("fit", *quick, "--data.name=digits", "--data.transform=fault_steps.later", says=says)
