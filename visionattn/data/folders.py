"""Classes of image folders, and warnings about folders that are probably wrong."""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from visionattn.data.errors import DataError
from visionattn.data.file_sources import UNNAMED
from visionattn.data.finding import is_hidden, no_permission
from visionattn.io import as_text


def class_name(folder: str) -> str:
    """Return the class that a folder's name stands for: text, in Unicode's composed form (a Mac writes the other)."""
    return as_text(unicodedata.normalize("NFC", folder))


def check_readable(place: Path) -> None:
    """Check a folder or ``.tar`` file before it is walked through, which passes over what it must not read.

    Raises:
        DataError: it is missing, is another kind of file, or may not be read.
    """
    if not place.exists():
        raise DataError(f"no such data folder: {place} (--data.root)")
    if place.is_file() and place.suffix != ".tar":
        raise DataError(f"{place} is a file: --data.root takes a folder, or a .tar file")
    listed = place.is_dir() and os.access(place, os.R_OK | os.X_OK)
    below = (path for path in (place.iterdir() if listed else ()) if path.is_dir() and not is_hidden(path.name))
    for path in (place, *below):
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise no_permission(path)


def check_class_names(place: Path, labels: Iterable[str]) -> None:
    """Warn of names that differ in their Unicode form alone, which are one class, or in case alone.

    Args:
        place: folder, archive or table of the classes.
        labels: names of the class folders, or other labels.
    """
    forms = Counter(class_name(label) for label in set(labels))
    if joined := sorted(name for name, count in forms.items() if count > 1):
        rank_zero_warn(
            f"{place} has class names that differ in their Unicode form alone, and are one class: "
            f"{', '.join(joined[:3])}"
        )
    lower = Counter(name.casefold() for name in forms)
    if similar := sorted(name for name in forms if lower[name.casefold()] > 1):
        rank_zero_warn(f"{place} has classes that differ in case alone: {', '.join(similar[:3])}")


def check_class_folders(place: Path, files: Iterable[str], expected: Collection[str] | None) -> None:
    """Warn of folders that may not mean what their owner thinks.

    Args:
        place: folder or archive of the classes.
        files: paths of the images in them.
        expected: expected classes, if they are known.

    Raises:
        DataError: some images are in no class folder.
    """
    folders = {path.rpartition(os.sep)[0]: path for path in files}
    if str(place) in folders and (len(folders) > 1 or (expected is not None and UNNAMED not in expected)):
        raise DataError(f"{folders[str(place)]} lies in no class folder: move it to {place}/CLASS, or elsewhere")
    used = {Path(folder).relative_to(place).parts[:1] for folder in folders}
    below = [path.name for path in place.iterdir() if path.is_dir() and not is_hidden(path.name)]
    if empty := sorted(name for name in below if (name,) not in used):
        rank_zero_warn(f"{place} has folders without images, which are no classes: {', '.join(empty[:3])}")
    if deeper := sorted(folder for folder in folders if folder != str(place) and Path(folder).parent != place):
        rank_zero_warn(f"{deeper[0]} lies deeper than {place}/CLASS: the innermost folder is taken for the class")
