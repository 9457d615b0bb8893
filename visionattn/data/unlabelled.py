"""Images without labels: files, folders and a tar archive in the order in which they are named; images in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from PIL import Image

from visionattn.data.errors import DataError
from visionattn.data.file_sources import FileSource, TarSource, list_images
from visionattn.data.images import Mode, to_mode, upright
from visionattn.data.sources import ImageSource, list_place

Images = Sequence[str | Path] | Sequence[Image.Image]
"""Files and folders, one tar archive, or images in memory."""

UNLABELLED = -1
"""Class index of an image whose class is not known."""


class MemorySource:
    """Images in memory, which are named by their numbers.

    Args:
        images: the images.
        mode: Pillow's mode of the images that are read.
    """

    def __init__(self, images: Sequence[Image.Image], mode: str) -> None:
        self.images, self.mode = images, mode
        self.class_to_idx: Mapping[str, int] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return the image in the wanted mode."""
        return to_mode(upright(self.images[index]), self.mode), UNLABELLED

    def name_of(self, index: int) -> str:
        """Return the number."""
        return str(index)

    def targets(self) -> Sequence[int]:
        """Return class indices, which are not known."""
        return [UNLABELLED] * len(self)

    def archives(self) -> Sequence[Path | bytes]:
        """Return the images as bytes."""
        return [image.tobytes() for image in self.images]


def open_unlabelled(images: Images, mode: Mode = "RGB") -> ImageSource:
    """Open files and folders of images (see `list_images`), a tar archive of images, or images in memory.

    Raises:
        DataError: a file or folder that is missing, a folder or archive without images, or nothing at all.
    """
    if not images:
        raise DataError("no images: name files or folders")
    if all(isinstance(image, Image.Image) for image in images):
        if isinstance(mode, int):
            raise DataError(f"the model takes images of {mode} channels: name files of them, not images of Pillow")
        return MemorySource(cast(Sequence[Image.Image], images), mode)
    if len(images) == 1 and (archive := Path(cast(str | Path, images[0])).expanduser()).suffix == ".tar":
        members = [(member, UNLABELLED) for member, _ in list_place(archive, isinstance(mode, int))]
        if not members:
            raise DataError(f"no images under {archive}")
        return TarSource(archive, members, None, mode)
    files = list_images(cast(Sequence[str | Path], images), arrays=isinstance(mode, int))
    return FileSource([(file, UNLABELLED) for file in files], None, mode)
