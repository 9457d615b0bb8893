"""Images of any number of channels: NumPy arrays, and TIFF files of many pages or of many samples per pixel."""

import logging
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from visionattn.data.images import upright

Array = np.ndarray[Any, np.dtype[Any]]

EXTENSIONS = frozenset({".npy", ".npz"})
"""Extensions of files of arrays, which are images only if ``--data.in_chans`` asks for other than 1 or 3 channels."""
NUMPY = (b"\x93NUMPY", b"PK\x03\x04")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUBFILE_TYPE, BITS, SAMPLES = 254, 258, 277
"""TIFF's tags."""

logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # it reports files that tifffile reads as errors


def read_array(file: str | Path | IO[bytes], channels: int) -> Array:
    """Read an image of ``channels`` channels, [C, H, W]: bytes, or single precision.

    - ``.npy``, or ``.npz`` of one array: the first or the last axis has the channels.
    - TIFF: the channels of all pages, one after another. What Pillow does not read needs ``tifffile``.
    - Other formats: the channels of the first frame, such as those of RGBA.

    Bytes stay what they are, 16 bits are divided by 65535, and floats are taken as they are.

    Raises:
        OSError: it is missing or cannot be decoded; Pillow also raises other errors.
        ValueError: it has other channels, values of another type, or values that are not finite.
    """
    with _opened(file) as opened:
        start = opened.read(6)
        opened.seek(0)
        if start.startswith(NUMPY):
            return _scaled(_channels_first(_load(opened), channels))
        values = _scaled(_read_tiff(opened) if start.startswith(TIFF) else _read_other(opened))
    if len(values) != channels:
        raise ValueError(
            f"it has {len(values)} channels, not {channels}: replace it, or train with in_chans {len(values)}"
        )
    return values


@contextmanager
def _opened(file: str | Path | IO[bytes]) -> Iterator[IO[bytes]]:
    if isinstance(file, str | Path):
        with Path(file).open("rb") as opened:
            yield opened
    else:
        yield file


def _load(file: IO[bytes]) -> Array:
    """Read an array; no object in the file is unpickled."""
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        if len(loaded.files) != 1:
            raise ValueError(f"it holds {len(loaded.files)} arrays, not one: save one image in each file")
        return np.asarray(loaded[loaded.files[0]])
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _channels_first(values: Array, channels: int) -> Array:
    """Return an array [C, H, W] or [H, W, C] as [C, H, W]; the channels are the axis of that length."""
    shape = "×".join(map(str, values.shape))
    ends = [values.shape[0] == channels, values.shape[-1] == channels] if values.ndim == 3 else [False, False]
    if all(ends):
        raise ValueError(f"its shape {shape} leaves open which axis has the {channels} channels: save it as TIFF")
    if not any(ends):
        raise ValueError(
            f"its shape is {shape}, and neither the first nor the last of three axes has the {channels} channels: "
            "replace it, or train with in_chans of its channels"
        )
    return values if ends[0] else np.moveaxis(values, -1, 0)


def _read_tiff(file: IO[bytes]) -> Array:
    """Read all pages of a TIFF, except for thumbnails."""
    pages: list[Array | None] = []
    try:
        with Image.open(file) as image:
            page: Any  # TIFF's tags are not declared
            for page in ImageSequence.Iterator(image):
                if not page.tag_v2.get(SUBFILE_TYPE, 0) & 1:
                    pages.append(_samples(page) if _is_complete(page) else None)
    except UnidentifiedImageError:
        pages = [None]
    complete = [page for page in pages if page is not None]
    return _join(complete if len(complete) == len(pages) else _read_with_tifffile(file))


def _is_complete(page: Any) -> bool:
    """Return whether Pillow decodes all samples of a page, and all of their bits."""
    samples = page.tag_v2.get(SAMPLES, 1)
    return samples == 1 or (samples == len(page.getbands()) and max(page.tag_v2.get(BITS, (8,))) <= 8)


def _read_with_tifffile(file: IO[bytes]) -> list[Array]:
    """Read all pages [C, H, W] of a TIFF, except for thumbnails."""
    try:
        import tifffile  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError(
            'a TIFF of more samples per pixel than Pillow reads: pip install "visionattn[tiff]"'
        ) from error
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as tiff:
            found: Any = tiff.pages
            pages = [(page.asarray(), page.axes) for page in found if not page.is_reduced]
    except Exception as error:  # of a damaged file it raises whatever it runs into
        raise ValueError(f"tifffile cannot read it: {error}") from error
    return [np.moveaxis(page, axes.index("S"), 0) if "S" in axes else page[None] for page, axes in pages]


def _read_other(file: IO[bytes]) -> Array:
    with Image.open(file) as image:
        return _samples(image)


def _samples(image: Image.Image) -> Array:
    """Return the samples of an image [C, H, W], upright; a palette's colours."""
    image.load()
    image = upright(image)
    if image.mode in ("1", "P"):
        colours = "RGBA" if "transparency" in image.info else "RGB"
        image = image.convert("L" if image.mode == "1" else colours)
    values = np.asarray(image)
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        values = values.astype(np.uint16)
    return values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)


def _join(pages: list[Array]) -> Array:
    """Join the channels of pages, which must agree in size and type."""
    kinds = sorted({f"{page.dtype} {page.shape[-1]}×{page.shape[-2]}" for page in pages})
    if len(kinds) > 1:
        raise ValueError(f"its pages are not of one size and type: {', '.join(kinds[:3])}")
    return np.concatenate(pages)


def _scaled(values: Array) -> Array:
    """Return bytes as they are, 16 bits between 0 and 1, and floats as they are, in single precision."""
    kind = (values.dtype.kind, values.dtype.itemsize)
    if kind == ("u", 1):
        return values
    if kind == ("u", 2):
        return values.astype(np.float32) / 65535
    if kind[0] != "f":
        raise ValueError(
            f"its values are {values.dtype.name}, of which none is known to be white: save uint8, uint16 or float32"
        )
    if not np.isfinite(values).all():
        raise ValueError("some of its values are not finite numbers (NaN or infinite): replace them")
    return values.astype(np.float32, copy=False)
