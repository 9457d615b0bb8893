"""Images as bytes, read, scaled and written."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from visionattn.viz.image import denormalize, save_image, scale_to_height, to_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp"])
def test_image_is_written_in_the_format_of_its_suffix(tmp_path, suffix):
    path = tmp_path / "new" / "folder" / f"image{suffix}"
    assert save_image(PIXELS, path) == path
    with Image.open(path) as image:
        assert (image.format, image.size) == (
            {".png": "PNG", ".webp": "WEBP"}.get(suffix.lower(), "JPEG"),
            (4, 6),
        )
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("pixels", [PIXELS, torch.from_numpy(PIXELS)], ids=["array", "tensor"])
def test_channels_are_in_rgb_order(tmp_path, pixels):
    with Image.open(save_image(pixels, str(tmp_path / "image.png"))) as image:
        np.testing.assert_array_equal(np.asarray(image), PIXELS)
    np.testing.assert_array_equal(to_pixels(tmp_path / "image.png"), PIXELS)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_image(PIXELS, tmp_path / "image.png")
    before = path.read_bytes()

    def fail(self, file, *args, **options):
        with open(file, "wb") as stream:  # noqa: PTH123
            stream.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_image(PIXELS[:2], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS / 255, r"bytes \[H, W, 3\], got float64 \[6, 4, 3\]"),
        (PIXELS[..., 0], r"got uint8 \[6, 4\]"),
        (PIXELS.transpose(2, 0, 1), r"got uint8 \[3, 6, 4\]"),
        (torch.zeros(1, 6, 4, 3, dtype=torch.uint8), r"got uint8 \[1, 6, 4, 3\]"),
    ],
    ids=["floats", "grey", "channels first", "batch"],
)
def test_array_that_is_not_an_image_is_refused(tmp_path, image, message):
    with pytest.raises(ValueError, match=message):
        save_image(image, tmp_path / "image.png")
    with pytest.raises(ValueError, match=message):
        to_pixels(image)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["image.pdf", "image", "image.tiff"])
def test_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: its suffix must be one of .png, .jpg"):
        save_image(PIXELS, tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_images_are_read_in_colour(tmp_path):
    Image.new("L", (4, 6), 77).save(tmp_path / "grey.png")
    for image in (tmp_path / "grey.png", str(tmp_path / "grey.png"), Image.new("L", (4, 6), 77)):
        np.testing.assert_array_equal(to_pixels(image), np.full((6, 4, 3), 77, np.uint8))


def test_to_pixels_turns_an_image_as_its_exif_block_says(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the top of the scene is on the right
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        np.testing.assert_array_equal(to_pixels(image), np.rot90(PIXELS, -1))


def test_unreadable_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        to_pixels(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match=r"text\.png"):
        to_pixels(tmp_path / "text.png")


@pytest.mark.parametrize(("height", "width"), [(6, 4), (12, 8), (9, 6), (3, 2), (1, 1)])
def test_scaling_keeps_the_aspect_ratio(height, width):
    scaled = scale_to_height(PIXELS, height)
    assert (scaled.shape, scaled.dtype) == ((height, width, 3), np.uint8)


def test_scaling_down_averages():
    np.testing.assert_allclose(scale_to_height(PIXELS, 3), PIXELS.reshape(3, 2, 2, 2, 3).mean((1, 3)), atol=0.51)
    np.testing.assert_array_equal(scale_to_height(PIXELS, 6), PIXELS)


@pytest.mark.parametrize("channels", [1, 3])
def test_denormalize_undoes_the_normalisation(channels):
    mean, std = (0.2, 0.4, 0.6)[:channels], (0.5, 0.25, 2.0)[:channels]
    pixels = np.random.default_rng(0).integers(0, 256, (2, channels, 4, 5), dtype=np.uint8)
    axes = (slice(None), None, None)
    normalised = (pixels / 255 - np.array(mean)[axes]) / np.array(std)[axes]
    shown = denormalize(torch.tensor(normalised), mean, std)
    assert (shown.shape, shown.dtype) == ((2, 4, 5, 3), np.uint8)
    assert (shown == np.broadcast_to(pixels.transpose(0, 2, 3, 1), (2, 4, 5, 3))).all()
    assert (denormalize(normalised[0] + 100, mean, std) == 255).all()


@pytest.mark.parametrize(("channels", "shown"), [(2, [0, 0, 0]), (4, [0, 1, 2]), (5, [0, 1, 2])])
def test_denormalize_shows_three_channels(channels, shown):
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 4, 5), dtype=np.uint8)
    drawn = denormalize(pixels / 255, [0.0] * channels, [1.0] * channels)
    assert (drawn == pixels[shown].transpose(1, 2, 0)).all()
