"""Images of any number of channels: what is read from files, and how it is brought to a model's size."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from visionattn.data import ImageClassificationData, read_image
from visionattn.data.transforms import image_transform, pixel_transform

SHAPE = (5, 24, 36)


def drawn(dtype: str = "uint8", shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).random(shape)
    return (values * {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]).astype(dtype)


def save_pages(path: Any, values: np.ndarray[Any, Any]) -> None:
    """Write a TIFF whose pages are the channels."""
    first, *others = map(Image.fromarray, values)
    first.save(path, "TIFF", save_all=True, append_images=others)


def save_npy(path: Path, values: np.ndarray[Any, Any]) -> None:
    np.save(path, values)


def save_npy_channels_last(path: Path, values: np.ndarray[Any, Any]) -> None:
    np.save(path, np.moveaxis(values, 0, -1))


def save_npz(path: Path, values: np.ndarray[Any, Any]) -> None:
    np.savez_compressed(path, image=values)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    ("save", "suffix"),
    [(save_pages, "tif"), (save_npy, "npy"), (save_npy_channels_last, "npy"), (save_npz, "npz")],
)
def test_files_hold_the_same_channels(tmp_path: Path, save: Callable[..., None], suffix: str, dtype: str) -> None:
    values = drawn(dtype)
    save(tmp_path / f"x.{suffix}", values)
    read = read_image(tmp_path / f"x.{suffix}", 5)
    assert read.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    assert np.allclose(read, values / 65535 if dtype == "uint16" else values, atol=1e-7)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK"])
def test_other_formats_keep_all_channels(mode: str) -> None:
    channels = len(mode)
    values = drawn(shape=(12, 8, channels))
    file = io.BytesIO()
    Image.frombytes(mode, (8, 12), values.tobytes()).save(file, "TIFF" if mode == "CMYK" else "PNG")
    file.seek(0)
    assert np.array_equal(read_image(file, channels), np.moveaxis(values, -1, 0))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("options", [{"planarconfig": "contig"}, {"planarconfig": "separate"}, {"photometric": "rgb"}])
def test_tiff_of_several_samples_per_pixel(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = drawn(dtype)
    separate = options.get("planarconfig") == "separate"
    options = {"photometric": "minisblack", "planarconfig": "contig", **options}
    tifffile.imwrite(tmp_path / "x.tif", values if separate else np.moveaxis(values, 0, -1), **options)
    read = read_image(tmp_path / "x.tif", 5)
    assert np.allclose(read, values / 65535 if dtype == "uint16" else values, atol=1e-7)


def preprocessing(channels: int, **changes: Any) -> dict[str, Any]:
    plain = {"input_size": (channels, 16, 16), "mean": (0.25,) * channels, "std": (0.5,) * channels}
    return {**plain, "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center", **changes}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(36, 24), (20, 50), (9, 200), (16, 16)])
def test_arrays_are_resized_as_images_of_pillow(size: tuple[int, int], crop_mode: str, interpolation: str) -> None:
    # A smooth image, three of whose six channels are the colours of the image of Pillow.
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(rows / height * 5 + n) * np.cos(columns / width * 4 - n) for n in range(6)]
    values = np.stack(waves).astype(np.uint8)
    colours = Image.fromarray(np.ascontiguousarray(np.moveaxis(values[:3], 0, -1)))
    options = {"crop_mode": crop_mode, "interpolation": interpolation}
    seen = pixel_transform(preprocessing(6, **options))(values)
    expected = pixel_transform(preprocessing(3, **options))(colours)
    assert seen.shape == (6, 16, 16)
    assert (seen[:3].int() - expected.int()).abs().max() <= 2
    assert seen.dtype == torch.uint8


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    "options", [{}, {"crop_padding": 4}, {"crop_from": 20, "vflip": 1.0}, {"no_aug": True}, {"re_prob": 1.0}], ids=str
)
def test_training_images_are_normalised_in_the_end(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    for folder in ("train/a", "val/a"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(2):
            values = np.full(SHAPE, 51 if dtype == "uint8" else 0.2, dtype)  # 0.2 everywhere
            np.save(tmp_path / folder / f"{number}.npy", values)
    options |= {"mean": [0.1] * 5, "std": [0.5] * 5, "num_workers": 0}
    data = ImageClassificationData(root=str(tmp_path), in_chans=5, img_size=16, batch_size=2, **options)
    data.setup("fit")
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        (batch,) = loader
        images: Tensor = batch.to("cpu").image
        assert images.shape == (2, 5, 16, 16)
        kept = torch.isclose(images, torch.tensor(0.2), atol=1e-4).float().mean()
        assert 0.1 < kept < 1 if "re_prob" in options and split == "train" else kept == 1


def test_crops_and_flips_take_all_channels_together(tmp_path: Path) -> None:
    ramp = np.arange(24 * 36, dtype=np.float32).reshape(24, 36) / 1000
    transform = pixel_transform(preprocessing(4), {"scale": (0.1, 1), "hflip": 0.5, "interpolation": "random"})
    for _ in range(10):
        image = transform(np.stack([ramp, ramp, ramp, ramp]))
        assert (image == image[:1]).all()


def test_floats_of_other_units_have_their_own_statistics() -> None:
    kelvin = np.full(SHAPE, 300, np.float32)
    with pytest.raises(ValueError, match="its values go up to 300, but mean and std are of values between 0 and 1"):
        image_transform(preprocessing(5))(kelvin)
    own = image_transform(preprocessing(5, mean=(290.0,) * 5, std=(5.0,) * 5))(kelvin)
    torch.testing.assert_close(own, torch.full((5, 16, 16), 2.0))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_bytes_and_floats_of_a_batch_are_all_normalised(tmp_path: Path, workers: int) -> None:
    values = np.random.default_rng(0).integers(256, size=(5, 8, 8), dtype=np.uint8)
    for name, image in (("bytes", values), ("sixteen", values.astype(np.uint16) * 257)):
        (tmp_path / "val" / name).mkdir(parents=True)
        np.save(tmp_path / "val" / name / "x.npy", image)
    data = ImageClassificationData(root=str(tmp_path), in_chans=5, img_size=8, crop_pct=1, num_workers=workers)
    data.setup("validate")
    first, second = next(iter(data.val_dataloader())).to("cpu").image
    torch.testing.assert_close(first, second)
    assert first.std() > 0.5
