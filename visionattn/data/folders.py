"""What may be wrong with folders of pictures even where pictures are found in them."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from visionattn.data.errors import DataError

UNNAMED = ""
"""The class of pictures that lie in no class folder, as those for pretraining may."""


def check_readable(place: Path) -> None:
    """Checks a folder or ``.tar`` file before it is walked through, which passes over what it must not read.

    Raises:
        DataError: it is not there, another kind of file, or it or a folder in it must not be read.
    """
    if not place.exists():
        raise DataError(f"no such data folder: {place} (--data.root)")
    if place.is_file() and place.suffix != ".tar":
        raise DataError(f"{place} is a file: --data.root takes a folder, or a .tar file")
    listed = place.is_dir() and os.access(place, os.R_OK | os.X_OK)
    for path in (place, *(path for path in (place.iterdir() if listed else ()) if path.is_dir())):
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise DataError(f"no permission to read {path}: grant it (chmod u+rX), or choose another --data.root")


def check_seen_once(folders: Iterable[str]) -> None:
    """Checks that no folder is met twice, as happens where a symbolic link leads back up.

    Raises:
        DataError: one is.
    """
    seen: dict[str, str] = {}
    for folder in sorted(folders, key=len):
        first = seen.setdefault(os.path.realpath(folder), folder)
        if first != folder:
            raise DataError(
                f"{folder} is {first} once more, by a symbolic link: remove the link, or its pictures count twice"
            )


def check_class_folders(
    place: Path, folders: Mapping[str, str], classes: Collection[str], expected: Collection[str] | None
) -> None:
    """Warns of folders that may not mean what their owner thinks.

    Args:
        place: where they are.
        folders: those with pictures, each with one of them.
        classes: what they are taken for.
        expected: the classes that there should be, where they are known.

    Raises:
        DataError: pictures that lie in no class folder, where others do.
    """
    if str(place) in folders and (len(folders) > 1 or (expected is not None and UNNAMED not in expected)):
        raise DataError(f"{folders[str(place)]} lies in no class folder: move it to {place}/CLASS, or elsewhere")
    empty = sorted({path.name for path in place.iterdir() if path.is_dir() and not any(path.iterdir())})
    if empty:
        rank_zero_warn(f"{place} has empty folders, which are no classes: {', '.join(empty[:3])}")
    if deeper := sorted(folder for folder in folders if Path(folder).parent != place):
        rank_zero_warn(f"{deeper[0]} lies deeper than {place}/CLASS: the innermost folder is taken for the class")
    lower = Counter(name.casefold() for name in classes)
    if alike := sorted(name for name in classes if lower[name.casefold()] > 1):
        rank_zero_warn(f"{place} has classes that differ in case alone: {', '.join(alike[:3])}")
