"""The columns of a table of images and their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from visionattn.data.errors import DataError
from visionattn.data.finding import image_extensions

PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path"),
    *("image", "image_path", "image_name", "image_id", "img", "id"),
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "targets", "category", "classes", "tags")
SPLIT_COLUMNS = ("split",)
"""Names of columns, in lower case; the first that a header has is taken."""

BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class TableOptions:
    """Columns of a table with labels.

    Args:
        path_column: name of the column of image files, by default ``path``, ``file``, ``image``, … or the first one.
        label_column: name of the column of labels, by default ``label``, ``class``, ``target``, … or the only one left;
            or a list of columns with 0 or 1, one for each class.
        label_separator: characters between the labels of an image, by default ``|`` or ``;``.
        multi_label: whether an image may have any number of labels; by default if the columns have 0 or 1.

    Raises:
        DataError: a separator without several labels.
    """

    path_column: str | None = None
    label_column: list[str] | str | None = None
    label_separator: str | None = None
    multi_label: bool | None = None

    def __post_init__(self) -> None:
        if self.label_separator is not None and not (self.multi_label and self.label_separator):
            raise DataError(
                f"--data.label_separator {self.label_separator!r} must be the characters between several labels of an "
                "image: add --data.multi_label true, or leave it out"
            )

    @property
    def given(self) -> list[str]:
        """Options that are not at their defaults, as on a command line."""
        return [f"--data.{name} {value}" for name, value in vars(self).items() if value is not None]


class Columns(NamedTuple):
    """Places of the columns in a header; several columns of labels have 0 or 1."""

    path: int
    labels: list[int]
    split: int | None
    one_column_each: bool


class Header:
    """The names of the columns of a table, in which those for images, labels and splits are found."""

    def __init__(self, file: Path, cells: Sequence[str]) -> None:
        self.file, self.names = file, [name.strip() for name in cells]
        self._lower = [name.lower() for name in self.names]

    def columns(self, options: TableOptions, first: Sequence[str]) -> Columns:
        """Find the columns by the options, by their names, or by the cells of the first row.

        Raises:
            DataError: there is no column of images, or of labels.
        """
        split, path = self._by_name(SPLIT_COLUMNS), self._path(options.path_column)
        if (given := options.label_column) is not None:
            wanted = [given] if isinstance(given, str) else given
            labels = [self._by_option(name, "label_column") for name in wanted]
            return Columns(path, labels, None if split in labels else split, not isinstance(given, str))
        label = self._by_name(LABEL_COLUMNS)
        if label not in (None, path):
            return Columns(path, [label], split, one_column_each=False)
        # pandas writes an index without a name.
        rest = [place for place, name in enumerate(self.names) if name and place not in (path, split)]
        are_bits = all(place < len(first) and first[place].strip().lower() in BITS for place in rest)
        if len(rest) == 1 or (rest and are_bits):
            each = len(rest) > 1 or (are_bits and bool(options.multi_label))
            return Columns(path, rest, split, one_column_each=each)
        raise self._lacks("label", LABEL_COLUMNS)

    def _path(self, wanted: str | None) -> int:
        if wanted is not None:
            return self._by_option(wanted, "path_column")
        if (found := self._by_name(PATH_COLUMNS)) is not None:
            return found
        first = next((place for place, name in enumerate(self.names) if name), None)
        if first in (None, self._by_name(LABEL_COLUMNS), self._by_name(SPLIT_COLUMNS)):
            raise self._lacks("path", PATH_COLUMNS)
        if Path(self.names[first]).suffix.lower() in image_extensions():
            raise DataError(f"{self.file} begins with an image, not with a header: put a line 'path,label' before it")
        return first

    def _by_name(self, names: Sequence[str]) -> int | None:
        """Return the place of the first of ``names`` that there is."""
        return next((self._lower.index(name) for name in names if name in self._lower), None)

    def _by_option(self, name: str, option: str) -> int:
        if name not in self.names:
            raise DataError(f"{self.file} has no column {name} (--data.{option}): its columns are {self}")
        return self.names.index(name)

    def _lacks(self, what: str, names: Sequence[str]) -> DataError:
        return DataError(
            f"{self.file} has no {what} column ({', '.join(names[:3])}, …): its columns are {self}; "
            f"--data.{what}_column names it"
        )

    def __str__(self) -> str:
        return ", ".join(self.names[:8]) + (", …" if len(self.names) > 8 else "")
