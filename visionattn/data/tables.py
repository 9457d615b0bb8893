"""Tables of images and their labels: CSV and TSV files."""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_utilities.core.rank_zero import rank_zero_warn

from visionattn.data.columns import BITS, SPLIT_COLUMNS, Header, TableOptions
from visionattn.data.errors import DataError
from visionattn.words import counted

Row = tuple[int, list[str]]
"""The number of a line, and its cells."""


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table.

    Attributes:
        file: the file.
        names: names of the labels, as they stand in the table.
        lines: line of each row in the file.
        paths: image of each row, without ``.`` and ``..`` where they change nothing.
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
        """Return whether an image may have any number of labels."""
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


def read_table(file: Path, options: TableOptions) -> LabelTable:
    """Read a table, whose columns are separated by tabs, commas or semicolons, as its header shows.

    Args:
        file: the table.
        options: its columns.

    Raises:
        DataError: no such file, no table, or a row that does not fit.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            delimiter = max("\t,;", key=text.readline().count)
            text.seek(0)
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            return _read(file, ((reader.line_num, row) for row in reader if any(row)), options)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror} (--data.labels takes a CSV or TSV file)") from error
    except UnicodeError as error:
        raise DataError(f"{file} is no table in UTF-8: save it as CSV or TSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{file} is no table in CSV or TSV: {error}; check its quotation marks") from error


def _read(file: Path, rows: Iterator[Row], options: TableOptions) -> LabelTable:
    header = Header(file, next(rows, (0, []))[1])
    if (first := next(rows, None)) is None:
        raise DataError(f"{file} has no images: a header such as 'path,label', and a row for each image, are expected")
    columns = header.columns(options, first[1])
    each = columns.one_column_each
    if each and options.label_separator is not None:
        raise DataError(f"{file} has a column for each label: leave out --data.label_separator")
    one_label = not (each if options.multi_label is None else options.multi_label)
    names = [header.names[column] for column in columns.labels] if each else []
    parse = _bits_parser(names, one_label) if each else _parser(names, one_label, options.label_separator)
    kept = _Rows(file)
    for line, row in chain([first], rows):
        if len(row) != len(header.names):
            raise DataError(f"{file}, line {line} has {counted(len(row), 'cell')}, the header has {len(header.names)}")
        try:
            label = parse([row[column].strip() for column in columns.labels])
        except ValueError as error:
            raise DataError(f"{file}, line {line}: {error}") from error
        split = "" if columns.split is None else row[columns.split].strip().lower()
        kept.add(line, os.path.normpath(row[columns.path].strip()), label, split)
    if kept.repeated:
        rank_zero_warn(f"{file}: passed over {counted(kept.repeated, 'row')} that repeat an image and its label")
    if one_label and options.multi_label is None and (several := [name for name in names if "|" in name]):
        rank_zero_warn(f"{file}: {several[0]!r} counts as one label; if it is several, pass --data.multi_label true")
    targets = np.asarray(kept.labels) if one_label else _to_matrix(kept.labels, len(names), each)
    splits = None if columns.split is None else kept.splits
    return LabelTable(file, names, kept.lines, list(kept.places), targets, splits, each)


class _Rows:
    """The rows of a table that name an image for the first time.

    Attributes:
        lines: line of each row.
        labels: parsed label, or labels, of each row.
        splits: split of each row.
        places: index of the row of each image.
        repeated: number of rows that say the same once more.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: list[int] = []
        self.labels: list[Any] = []
        self.splits: list[str] = []
        self.places: dict[str, int] = {}
        self.repeated = 0

    def add(self, line: int, path: str, label: Any, split: str) -> None:
        """Add a row, unless it repeats another one.

        Raises:
            DataError: another row says something else of the same image.
        """
        before = self.places.setdefault(path, len(self.lines))
        if before == len(self.lines):
            self.lines.append(line)
            self.labels.append(label)
            self.splits.append(split)
        elif (label, split) == (self.labels[before], self.splits[before]):
            self.repeated += 1
        else:
            differs = "label" if label != self.labels[before] else "split"
            raise DataError(
                f"{self.file}, line {line}: {path} has another {differs} than in line {self.lines[before]}: remove one "
                "row"
            )


def _parser(names: list[str], one_label: bool, separator: str | None) -> Callable[[list[str]], Any]:
    """Return a function from the cell of a row to the number of its label, or of several; it extends ``names``."""
    numbers: dict[str, int] = {}
    pattern = "[|;]" if separator is None else re.escape(separator)

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
        return sorted({number(label.strip()) for label in re.split(pattern, cells[0]) if label.strip()})

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
