"""Reading of images from files, the same for all data sets."""

from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from PIL import ExifTags, Image, ImageOps

SIXTEEN_BITS = 65535

Mode = str | int
"""How images are read: Pillow's ``"L"`` or ``"RGB"``, or as arrays of another number of channels."""


def image_mode(channels: int) -> Mode:
    """Return the mode of images of so many channels."""
    return {1: "L", 3: "RGB"}.get(channels, channels)


@overload
def read_image(file: str | Path | IO[bytes], mode: str = "RGB") -> Image.Image: ...


@overload
def read_image(file: str | Path | IO[bytes], mode: Mode) -> Any: ...


def read_image(file: str | Path | IO[bytes], mode: Mode = "RGB") -> Any:
    """Decode an image as people see it.

    Cameras store pixels in the order of their sensor, and in EXIF the side that is up. The image is turned
    accordingly (timm and torchvision do not). The first of several frames counts; see :func:`to_mode`.

    Args:
        file: path or open file.
        mode: Pillow's mode of the result, ``"RGB"`` or ``"L"``; or a number of channels: the result is then an array
            [C, H, W], see :func:`visionattn.data.arrays.read_array`.

    Raises:
        OSError: it is missing or cannot be decoded; Pillow also raises other errors.
        ValueError: see :func:`to_mode` and :func:`visionattn.data.arrays.read_array`.
    """
    if isinstance(mode, int):
        from visionattn.data.arrays import read_array

        return read_array(file, mode)
    with Image.open(file) as image:
        image.load()
        return to_mode(upright(image), mode)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to a mode; 16 bits are scaled to 8, where Pillow makes all above 255 white.

    Transparency is dropped, as in timm: the colours below it count.

    Raises:
        ValueError: pixels have neither 8 nor 16 bits, so that the value of white is unknown.
    """
    # Netpbm's 16 bits come as 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        scaled = np.asarray(image) * (255 / SIXTEEN_BITS)
        image = Image.fromarray(scaled.round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"its pixels are {kind}, of which none is known to be white: convert it to 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # spares a warning
    return image.convert(mode)


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF block says, if there is one."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # a damaged EXIF block makes Pillow raise whatever it runs into, and says nothing of the pixels
        return image
