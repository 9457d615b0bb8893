"""Images as arrays of bytes [H, W, 3] in RGB order, and their files."""

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.images import image_mode, read_image, to_mode, upright
from visionattn.io import replacing

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def save_image(image: Any, path: str | Path) -> Path:
    """Write bytes [H, W, 3] atomically, in the format of the suffix; make missing folders.

    Raises:
        ValueError: another shape or type, or a suffix that is not an image's.
    """
    from PIL import Image

    path, pixels = Path(path).expanduser(), _checked(image)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"cannot write an image to {path}: its suffix must be one of .png, .jpg, .webp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary)
    return path


def to_pixels(image: Any) -> Pixels:
    """Return a path, a Pillow image, or bytes [H, W, 3] as bytes, upright as its EXIF block says.

    Raises:
        ValueError: an array that is not such bytes.
        OSError: a file that is missing or not an image.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        return np.asarray(read_image(image))
    return np.asarray(to_mode(upright(image), "RGB")) if isinstance(image, Image.Image) else _checked(image)


def read_pixels(file: str | Path, channels: int = 3) -> Pixels:
    """Return an image in a file as bytes [H, W, 3]; of more channels the first three, of two the first, in grey.

    Raises:
        ValueError: its channels are others.
        OSError: it is missing or not an image.
    """
    image = read_image(file, image_mode(channels))
    if not isinstance(image, np.ndarray):
        return to_pixels(image)
    return denormalize(image / 255 if image.dtype == np.uint8 else image, [0.0], [1.0])


def scale_to_height(pixels: Pixels, height: int) -> Pixels:
    """Resize an image to this height in pixels, and keep its aspect ratio."""
    import cv2

    if height == len(pixels):
        return pixels
    width = max(1, round(pixels.shape[1] * height / len(pixels)))
    method = cv2.INTER_AREA if height < len(pixels) else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=method), dtype=np.uint8)


def _checked(image: Any) -> Pixels:
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"an image is bytes [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return pixels


def denormalize(images: Any, mean: Any, std: Any) -> Pixels:
    """Undo the normalisation of images, and return bytes [..., H, W, 3] of the first three channels.

    Images of one or two channels become grey.

    Args:
        images: tensor or array [..., C, H, W].
        mean: mean of each channel that was subtracted.
        std: standard deviation of each channel that was divided by.
    """
    scale, offset = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (std, mean))
    pixels = 255 * (np.asarray(images, dtype=np.float32) * scale + offset)
    pixels = np.moveaxis(pixels.round().clip(0, 255).astype(np.uint8), -3, -1)
    pixels = pixels[..., : 3 if pixels.shape[-1] > 2 else 1]
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))
