"""Tables of images and their labels: CSV and TSV files."""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from lightning_utilities.core.rank_zero import rank_zero_warn

from visionattn.data.errors import DataError
from visionattn.data.finding import image_extensions
from visionattn.words import counted

PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path"),
    *("image", "image_path", "image_name", "image_id", "img", "id"),
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "targets", "category", "classes", "tags")
SPLIT_COLUMNS = ("split",)
"""Names of columns, in lower case; the first that a header has is taken."""

BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}

Row = tuple[int, list[str]]
"""The number of a line, and its cells."""


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


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table.

    Attributes:
        file: the file.
        names: names of the labels, as they stand in the table.
        lines: line of each row in the file.
        paths: image of each row, as it stands in the table.
        targets: index in ``names`` of each row's label, [N]; if an image may have several, whether it has each, [N, K].
        splits: split of each row in lower case, if the table says it.
        one_column_each: whether each label has a column, and is a class even if no image has it.
    """

    file: Path
    names: list[str]
    lines: list[int]
    paths: list[str]
    targets: npt.NDArray[Any]
    splits: list[str] | None
    one_column_each: bool

    @property
    def multi_label(self) -> bool:
        """True if an image may have any number of labels."""
        return self.targets.ndim == 2

    def rows_of(self, names: Sequence[str], option: str) -> npt.NDArray[np.intp]:
        """Return the rows of a split, the first of ``names`` that the table has; without splits, all rows.

        Raises:
            DataError: the table has only other splits; ``option`` names one.
        """
        if self.splits is None:
            return np.arange(len(self.paths))
        splits = np.asarray(self.splits)
        for name in names:
            if len(rows := np.flatnonzero(splits == name.lower())):
                return rows
        found = sorted({split or "empty cells" for split in self.splits})
        raise DataError(
            f"{self.file} has no rows of split {' or '.join(names)}: its column {SPLIT_COLUMNS[0]} has "
            f"{', '.join(found[:6])}{', …' if len(found) > 6 else ''}; {option} names one"
        )


class Columns(NamedTuple):
    """Places of the columns in a header; several columns of labels have 0 or 1."""

    path: int
    labels: list[int]
    split: int | None
    one_column_each: bool


def read_table(file: Path, options: TableOptions, option: str = "--data.labels") -> LabelTable:
    """Read a table, whose columns are separated by tabs, commas or semicolons, as its header shows.

    Args:
        file: the table.
        options: its columns.
        option: the option that names the file, for messages.

    Raises:
        DataError: no such file, no table, or a row that does not fit.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            delimiter = max("\t,;", key=text.readline().count)
            text.seek(0)
            reader = csv.reader(text, delimiter=delimiter)
            return _read(file, ((reader.line_num, row) for row in reader if any(row)), options)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror} ({option} FILE.csv)") from error
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{file} is no table in UTF-8: save it as CSV or TSV in UTF-8 ({option})") from error


def _read(file: Path, rows: Iterator[Row], options: TableOptions) -> LabelTable:
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if (first := next(rows, None)) is None:
        raise DataError(f"{file} has no images: a header such as 'path,label', and a row for each image, are expected")
    columns = _find_columns(file, header, first[1], options)
    if columns.one_column_each and options.label_separator is not None:
        raise DataError(f"{file} has a column for each label: leave out --data.label_separator")
    one_label = not (columns.one_column_each if options.multi_label is None else options.multi_label)
    names = [header[column] for column in columns.labels] if columns.one_column_each else []
    parse = _bits_parser(names, one_label) if columns.one_column_each else _parser(names, one_label, options)
    lines: list[int] = []
    labels: list[Any] = []
    splits: list[str] = []
    seen: dict[str, int] = {}
    repeated = 0
    for line, row in chain([first], rows):
        if len(row) != len(header):
            raise DataError(f"{file}, line {line} has {counted(len(row), 'cell')}, the header has {len(header)}")
        try:
            label = parse([row[column].strip() for column in columns.labels])
        except ValueError as error:
            raise DataError(f"{file}, line {line}: {error}") from error
        path = row[columns.path].strip()
        split = "" if columns.split is None else row[columns.split].strip().lower()
        if (before := seen.setdefault(path, len(lines))) < len(lines):
            if (label, split) != (labels[before], splits[before]):
                differs = "label" if label != labels[before] else "split"
                raise DataError(
                    f"{file}, line {line}: {path} has another {differs} than in line {lines[before]}: remove one row"
                )
            repeated += 1
            continue
        lines.append(line)
        labels.append(label)
        splits.append(split)
    if repeated:
        rank_zero_warn(f"{file}: passed over {counted(repeated, 'row')} that repeat an image and its label")
    if one_label and options.multi_label is None and (several := [name for name in names if "|" in name]):
        rank_zero_warn(f"{file}: {several[0]!r} counts as one label; if it is several, pass --data.multi_label true")
    targets = np.asarray(labels) if one_label else _to_matrix(labels, len(names), columns.one_column_each)
    return LabelTable(
        file, names, lines, list(seen), targets, None if columns.split is None else splits, columns.one_column_each
    )


def _parser(names: list[str], one_label: bool, options: TableOptions) -> Callable[[list[str]], Any]:
    """Return a function from the cell of a row to the number of its label, or of several; it extends ``names``."""
    numbers: dict[str, int] = {}
    separator = "[|;]" if options.label_separator is None else re.escape(options.label_separator)

    def number(label: str) -> int:
        if label not in numbers:
            numbers[label] = len(names)
            names.append(label)
        return numbers[label]

    def parse(cells: list[str]) -> int | list[int]:
        if one_label:
            if not cells[0]:
                raise ValueError("the image has no label: add it, or remove the row")
            return number(cells[0])
        return sorted({number(label.strip()) for label in re.split(separator, cells[0]) if label.strip()})

    return parse


def _bits_parser(names: list[str], one_label: bool) -> Callable[[list[str]], Any]:
    """Return a function from the cells of a row to a byte for each label, or to the number of its only label."""

    def parse(cells: list[str]) -> int | bytes:
        try:
            bits = bytes([BITS[cell.lower()] for cell in cells])
        except KeyError:
            name, cell = next(pair for pair in zip(names, cells, strict=True) if pair[1].lower() not in BITS)
            raise ValueError(
                f"column {name} has {cell!r}, where 0 or 1 is expected; --data.label_column names the columns of labels"
            ) from None
        if not one_label:
            return bits
        if sum(bits) != 1:
            raise ValueError(f"the image has {counted(sum(bits), 'label')}: leave out --data.multi_label false")
        return bits.index(1)

    return parse


def _to_matrix(labels: Sequence[Any], width: int, are_bits: bool) -> npt.NDArray[np.bool_]:
    """Return whether each image has each label, [N, K], from its bits or from the numbers of its labels."""
    if are_bits:
        return np.frombuffer(b"".join(labels), dtype=np.bool_).reshape(len(labels), width)
    matrix = np.zeros((len(labels), width), dtype=np.bool_)
    for row, numbers in enumerate(labels):
        matrix[row, numbers] = True
    return matrix


def _find_columns(file: Path, header: list[str], first: list[str], options: TableOptions) -> Columns:
    """Find the columns by the options, by their names, or by what the first row has in them."""
    named = [place for place, name in enumerate(header) if name]  # pandas writes an index without a name
    split = _by_name(header, SPLIT_COLUMNS)
    if options.path_column is not None:
        path = _by_option(file, header, options.path_column, "path_column")
    else:
        found = _by_name(header, PATH_COLUMNS)
        others = {_by_name(header, LABEL_COLUMNS), split}
        path = found if found is not None else next((place for place in named[:1] if place not in others), -1)
        if found is None and path >= 0 and os.path.splitext(header[path])[1].lower() in image_extensions():  # noqa: PTH122
            raise DataError(f"{file} begins with an image, not with a header: put a line 'path,label' before it")
        if path < 0:
            raise DataError(_no_column(file, header, "path", PATH_COLUMNS))
    given = options.label_column
    if given is not None:
        wanted = [given] if isinstance(given, str) else given
        labels = [_by_option(file, header, name, "label_column") for name in wanted]
        return Columns(path, labels, split if split not in labels else None, not isinstance(given, str))
    if (label := _by_name(header, LABEL_COLUMNS)) is not None and label != path:
        return Columns(path, [label], split, one_column_each=False)
    rest = [place for place in named if place not in (path, split)]
    bits = [place < len(first) and first[place].strip().lower() in BITS for place in rest]
    if len(rest) == 1 or (rest and all(bits)):
        return Columns(path, rest, split, one_column_each=len(rest) > 1)
    raise DataError(_no_column(file, header, "label", LABEL_COLUMNS))


def _by_name(header: list[str], names: Sequence[str]) -> int | None:
    """Return the place of the first of ``names`` that the header has."""
    lower = [name.lower() for name in header]
    return next((lower.index(name) for name in names if name in lower), None)


def _by_option(file: Path, header: list[str], name: str, option: str) -> int:
    if name not in header:
        raise DataError(f"{file} has no column {name} (--data.{option}): its columns are {_listed(header)}")
    return header.index(name)


def _no_column(file: Path, header: list[str], what: str, names: Sequence[str]) -> str:
    return (
        f"{file} has no {what} column ({', '.join(names[:3])}, …): its columns are {_listed(header)}; "
        f"--data.{what}_column names it"
    )


def _listed(header: list[str]) -> str:
    return ", ".join(header[:8]) + (", …" if len(header) > 8 else "")
