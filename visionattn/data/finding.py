"""The rule of which files of a folder or archive are images, and of their order, for every reader."""

import functools
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn
from PIL import Image

from visionattn.data.arrays import EXTENSIONS
from visionattn.data.errors import DataError
from visionattn.io import as_text

SYSTEM_NAMES = frozenset(
    {
        "$recycle.bin",
        "#recycle",
        "@eadir",
        "@recycle",
        "__macosx",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
"""Files and folders that operating systems and file servers leave among images, in lower case."""

NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow recognises, but needs another program to decode."""


@functools.cache
def image_extensions() -> frozenset[str]:
    """Return the extensions, in lower case, of the formats that Pillow decodes."""
    Image.preinit()  # Pillow tries formats in the order of their loading: the common ones first
    formats = Image.registered_extensions()  # loads all formats, and so comes before Image.OPEN
    # Pillow opens files of several JPEGs (MPO) as JPEG.
    readable = {*Image.OPEN, "MPO"} - NOT_DECODED
    return frozenset(extension for extension, name in formats.items() if name in readable)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or one of the system's."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in SYSTEM_NAMES


def natural_key(name: str) -> list[str | int]:
    """Return the sort key of a name, with which 10 follows 9."""
    # timm's own gives the same order, and fails upon digits such as ².
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]


class Finder:
    """Search for the images of a folder or archive, with a count of skipped files.

    Args:
        place: a folder or an archive.
        companions: extensions of other files of the data set, which are not counted as skipped.
        arrays: whether files of arrays are images.
    """

    def __init__(self, place: Path, companions: Collection[str] = (), *, arrays: bool = False) -> None:
        self.place, self.companions = place, companions
        self._extensions = image_extensions() | (EXTENSIONS if arrays else frozenset())
        self._hidden: set[str] = set()
        self._others: Counter[str] = Counter()

    def is_image(self, path: str) -> bool:
        """Return whether ``path``, with ``/`` and relative to the place, is an image and not hidden."""
        parts = path.split("/")
        for depth, part in enumerate(parts, start=1):
            if is_hidden(part):
                self._hidden.add("/".join(parts[:depth]))
                return False
        extension = posixpath.splitext(parts[-1])[1].lower()
        if extension in self._extensions:
            return True
        if extension not in self.companions:
            self._others[extension or "no extension"] += 1
        return False

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Walk through a folder from the top, in the order of names, also along symbolic links.

        Yields:
            The path of a folder, the names of the folders in it, of which the caller may remove some, and the names of
            the images in it.

        Raises:
            DataError: a symbolic link shows images once more, or a folder must not be read.
        """
        seen: dict[str, str] = {}
        for folder, folders, files in os.walk(self.place, onerror=_refuse, followlinks=True):
            below = Path(folder).relative_to(self.place).as_posix()
            within = "" if below == "." else f"{below}/"
            self._hidden.update(within + name for name in folders if is_hidden(name))
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            images = sorted(name for name in files if self.is_image(within + name))
            if images and (first := seen.setdefault(os.path.realpath(folder), folder)) != folder:
                raise DataError(
                    f"{folder} is {first} once more, by a symbolic link: remove the link, or its images count twice"
                )
            yield folder, folders, images

    def report(self) -> None:
        """Warn of all that was passed over, in one line."""
        kinds = sorted(self._others, key=lambda kind: (-self._others[kind], kind))
        passed = [
            f"{what}: {count:,} ({as_text(', '.join(names[:3]))}{', …' if len(names) > 3 else ''})"
            for count, what, names in (
                (len(self._hidden), "hidden or system files and folders", sorted(self._hidden)),
                (self._others.total(), "files that are not images Pillow reads", kinds),
            )
            if count
        ]
        if passed:
            rank_zero_warn(f"{self.place}: passed over {'; '.join(passed)}")


def _refuse(error: OSError) -> None:
    """Raise the error of a folder that may not be read, which a walk would skip."""
    if isinstance(error, PermissionError):
        raise no_permission(error.filename) from error


def no_permission(path: str | Path) -> DataError:
    """Return the error of a folder or file that must not be read."""
    return DataError(f"no permission to read {path}: grant it (chmod u+rX), or choose another --data.root")
