"""Image files to extract features from, and the state by which a change of a file is noticed."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from visionattn.data import UnreadableImageError
from visionattn.data.file_sources import FileSource
from visionattn.data.images import image_mode
from visionattn.data.loading import OnError
from visionattn.data.sampling import Draw
from visionattn.data.unlabelled import UNLABELLED
from visionattn.io import as_text
from visionattn.probing.features.extraction import ImageBatch
from visionattn.probing.features.splits import read_batches

States = np.ndarray[Any, np.dtype[np.int64]]


def file_states(files: Sequence[str]) -> States:
    """Return sizes in bytes and dates in ns of files, `[N, 2]`; -1 for a file that is missing."""
    states = np.full((len(files), 2), -1, np.int64)
    for row, file in enumerate(files):
        try:
            found = os.stat(file)  # noqa: PTH116  a million strings
        except OSError:  # an unreadable image, which is named when it is read
            continue
        states[row] = found.st_size, found.st_mtime_ns
    return states


class ImageFiles:
    """Image files, as `visionattn.probing.features.extraction.Images`."""

    def __init__(
        self, files: Sequence[str], preprocessing: Mapping[str, Any], num_workers: int, on_error: OnError
    ) -> None:
        mode = image_mode(preprocessing["input_size"][0])
        self.source = FileSource([(file, UNLABELLED) for file in files], None, mode)
        self.preprocessing, self.num_workers, self.on_error = preprocessing, num_workers, on_error
        digest = hashlib.blake2b("\0".join(files).encode(errors="surrogateescape"), digest_size=16)
        digest.update(file_states(files).tobytes())
        self.identity: Mapping[str, Any] = {"files": digest.hexdigest()}
        self.augmentation: Mapping[str, Any] = {}
        self.targets: Sequence[int] = [UNLABELLED] * len(files)
        self._errors: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.source)

    def open(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterator[ImageBatch]:
        """Read images batch by batch; see `visionattn.probing.features.extraction.Images`."""
        draws = [[Draw(number) for number in batch] for batch in batches]
        for batch in read_batches(self.source, self.preprocessing, draws, self.num_workers):
            if batch.errors and self.on_error == "raise":
                raise UnreadableImageError(
                    f"cannot read {batch.errors[0]}; repair or remove it, or pass --on_error skip"
                )
            self._errors.update(dict.fromkeys(batch.errors))
            yield batch

    def unreadable(self, readable: Sequence[int]) -> list[str]:
        """Return a line for each file that is not among the numbers of those that could be read."""
        missing = [as_text(self.source.name_of(number)) for number in sorted({*range(len(self))} - {*readable})]
        if len(self._errors) == len(missing):
            return list(self._errors)
        # Some were read before the extraction was interrupted, and only their names are known.
        return [next((line for line in self._errors if line.startswith(f"{name}: ")), name) for name in missing]
