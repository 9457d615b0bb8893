"""Images with known classes in files and in tar archives."""

import io
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from visionattn.data.balance import Targets
from visionattn.data.errors import DataError
from visionattn.data.finding import Finder, is_hidden, natural_key
from visionattn.data.images import Mode, read_image

File = TypeVar("File")

UNNAMED = ""
"""The class of images that lie in no class folder, as those for pretraining may."""


class _Images(Generic[File]):
    """Base of sources of images in files."""

    def __init__(self, files: Sequence[tuple[File, int]], class_to_idx: Mapping[str, int] | None, mode: Mode) -> None:
        self.files, self.class_to_idx, self.mode = files, class_to_idx, mode

    def __len__(self) -> int:
        return len(self.files)

    def targets(self) -> Targets:
        """Return the class indices of all images."""
        return [target for _, target in self.files]


class FileSource(_Images[str]):
    """Images in files.

    Args:
        files: paths and class indices.
        class_to_idx: class indices by name.
        mode: mode of the images, as `read_image` takes it.
    """

    def read(self, index: int) -> tuple[Any, int | Tensor]:
        """Return the image in the wanted mode, and its class index."""
        path, target = self.files[index]
        return read_image(path, self.mode), target

    def name_of(self, index: int) -> str:
        """Return the path of the file."""
        return self.files[index][0]

    def archives(self) -> Sequence[Path | bytes]:
        """Return nothing: images are files."""
        return []


class Member(NamedTuple):
    """A file in an archive: its path there, and where its bytes are."""

    name: str
    offset: int
    size: int


class TarSource(_Images[Member]):
    """Images in a tar archive. It keeps no file open, so that processes can share it however they start.

    Args:
        archive: the file.
        members: the images in it, and their class indices.
        class_to_idx: class indices by name.
        mode: mode of the images, as `read_image` takes it.
    """

    def __init__(
        self, archive: Path, members: Sequence[tuple[Member, int]], class_to_idx: Mapping[str, int] | None, mode: Mode
    ) -> None:
        super().__init__(members, class_to_idx, mode)
        self.archive = archive

    def read(self, index: int) -> tuple[Any, int]:
        """Return the image in the wanted mode, and its class index."""
        member, target = self.files[index]
        with self.archive.open("rb") as file:
            file.seek(member.offset)
            return read_image(io.BytesIO(file.read(member.size)), self.mode), target

    def name_of(self, index: int) -> str:
        """Return the path of the image in the archive."""
        return self.files[index][0].name

    def archives(self) -> Sequence[Path | bytes]:
        """Return the archive."""
        return [self.archive]


def list_folder(finder: Finder) -> list[tuple[str, str]]:
    """Return the images in a folder, each a path with the name of its innermost folder, in the order of the paths."""
    found = [
        (os.path.join(folder, name), UNNAMED if folder == str(finder.place) else os.path.basename(folder))  # noqa: PTH118, PTH119  a million strings
        for folder, _, images in finder.walk()
        for name in images
    ]
    return sorted(found, key=lambda image: natural_key(image[0]))


def list_images(places: Iterable[str | Path], arrays: bool = False) -> list[str]:
    """Return the paths of images: files as they are named, and all images in folders and the folders in them.

    Raises:
        DataError: a place is missing, a folder must not be read, or there are no images.
    """
    found: dict[str, None] = {}  # an ordered set
    for place in (Path(place).expanduser() for place in places):
        if not place.exists():
            raise DataError(f"no such image or folder: {place}")
        if place.is_dir():
            finder = Finder(place, arrays=arrays)
            images = [path for path, _ in list_folder(finder)]
            finder.report()
            if not images:
                raise DataError(f"no images under {place}")
            found.update(dict.fromkeys(images))
        else:
            found[str(place)] = None
    return list(found)


def list_tar(finder: Finder) -> list[tuple[Member, str]]:
    """Return the images in a tar archive and in the archives in it, as :func:`list_folder` does.

    Raises:
        OSError: the file cannot be read.
        TarError: it is not a complete, uncompressed tar.
    """
    with tarfile.open(finder.place, "r:") as archive:
        members = [member for member in _members(archive) if finder.is_image(member.name)]
    members.sort(key=lambda member: natural_key(member.name))
    labels = (posixpath.basename(posixpath.dirname(member.name)) for member in members)
    return [(member, UNNAMED if label in (".", "..") else label) for member, label in zip(members, labels, strict=True)]


def _members(archive: tarfile.TarFile, within: str = "", start: int = 0) -> Iterator[Member]:
    """Yield the files of an archive whose bytes begin at ``start``; one in another one counts as a folder."""
    for info in archive:
        if not info.isreg():
            continue
        name, offset = within + info.name, start + info.offset_data
        stem, extension = posixpath.splitext(name)
        if extension.lower() == ".tar" and not any(map(is_hidden, name.split("/"))):
            with tarfile.open(fileobj=archive.extractfile(info), mode="r:") as inner:
                yield from _members(inner, f"{stem}/", offset)
        else:
            yield Member(name, offset, info.size)
