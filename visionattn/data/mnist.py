"""MNIST from the files that it is distributed as, packed or unpacked."""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from visionattn.data.errors import DataError

PREFIXES = {"train": "train", "test": "t10k"}
IDX_UBYTE = 0x0800  # the first two bytes are 0, the third says unsigned bytes, the fourth counts the axes


class MNIST:
    """28×28 scans of handwritten digits: 60,000 for training and 10,000 for testing.

    Args:
        root: folder that holds ``MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte``, where torchvision puts them,
            each with ``.gz`` or without.
        split: ``"train"`` or ``"test"``.
        mode: Pillow's mode of the images, ``"RGB"`` or ``"L"``.

    Raises:
        DataError: a file is missing or not as expected.
    """

    def __init__(self, root: Path, split: Literal["train", "test"], mode: str = "L") -> None:
        self.prefix, self.mode = PREFIXES[split], mode
        self.scans = _read(root, f"{self.prefix}-images-idx3-ubyte", axes=3)
        labels = _read(root, f"{self.prefix}-labels-idx1-ubyte", axes=1)
        if len(labels) != len(self.scans):
            raise DataError(
                f"{root / 'MNIST' / 'raw'} has {len(self.scans)} images and {len(labels)} labels of {self.prefix}: "
                "download both files again"
            )
        self._targets: list[int] = labels.tolist()
        self.class_to_idx: Mapping[str, int] | None = {str(digit): digit for digit in range(10)}

    def __len__(self) -> int:
        return len(self.scans)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its digit."""
        return Image.fromarray(self.scans[index]).convert(self.mode), self._targets[index]

    def name_of(self, index: int) -> str:
        """Return the name of an image: its position in the file."""
        return f"mnist/{self.prefix}/{index:05d}"

    def targets(self) -> Sequence[int]:
        """Return the digits of all images."""
        return self._targets

    def archives(self) -> Sequence[Path | bytes]:
        """Return the scans, from memory."""
        return [self.scans.tobytes()]


def _read(root: Path, name: str, axes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read an array in the IDX format: a magic number, the length of each axis, the bytes."""
    folder = root / "MNIST" / "raw"
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise DataError(
            f"no {name} or {name}.gz in {folder}: --data.name mnist looks for its four files in MNIST/raw under "
            "--data.root and downloads nothing; --data.name torch/mnist --data.download puts them there"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}, or only part of it: {error}; download it again") from error
    header = np.frombuffer(content[: 4 * (1 + axes)], dtype=">u4")
    if len(header) != 1 + axes or header[0] != IDX_UBYTE + axes:
        raise DataError(f"{path} is not an IDX file of {axes} axes, as MNIST's are: download it again")
    shape = tuple(int(length) for length in header[1:])
    values = np.frombuffer(content, dtype=np.uint8, offset=header.nbytes)
    if values.size != np.prod(shape):
        expected = "×".join(map(str, shape))
        raise DataError(f"{path} states {expected} bytes, the file holds {values.size}: download it again")
    return values.reshape(shape)
