"""Images whose labels are in tables."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from visionattn.data.arrays import EXTENSIONS
from visionattn.data.columns import TableOptions
from visionattn.data.errors import DataError
from visionattn.data.file_sources import FileSource
from visionattn.data.finding import image_extensions, no_permission
from visionattn.data.folders import check_class_names
from visionattn.data.images import Mode
from visionattn.data.sources import OPTIONS, SPLITS, Source, number_classes
from visionattn.data.tables import LabelTable, read_table
from visionattn.words import counted

TABLES = {"train": "labels", "validation": "val_labels", "test": "test_labels"}
"""Options that name the table of each split."""


class MultiLabelSource(FileSource):
    """Images in files, each with any number of labels.

    Args:
        files: paths.
        labels: whether each image has each label, [N, K].
        class_to_idx: class indices by name.
        mode: mode of the images, as `read_image` takes it.
    """

    def __init__(
        self, files: Sequence[str], labels: npt.NDArray[np.bool_], class_to_idx: Mapping[str, int], mode: Mode
    ) -> None:
        super().__init__([(path, row) for row, path in enumerate(files)], class_to_idx, mode)
        self.labels = labels

    def read(self, index: int) -> tuple[Any, Tensor]:
        """Return the image in the wanted mode, and 0 or 1 for each class."""
        image, row = super().read(index)
        return image, torch.from_numpy(self.labels[row].astype(np.float32))

    def targets(self) -> npt.NDArray[np.bool_]:
        """Return whether each image has each label, [N, K]."""
        return self.labels


class LabelledFiles:
    """Tables with the labels of images, and the folder of the images.

    Args:
        files: table of each split that has its own, and of the training split.
        root: folder of the images, by default that of their table.
        options: columns of the tables.

    Attributes:
        given: ``files`` as it was given.
    """

    def __init__(self, files: Mapping[str, Path], root: Path | None, options: TableOptions) -> None:
        validation = files.get("validation", files["train"])
        self.files = {"validation": validation, "test": validation, **files}
        self.given = files
        self.root, self.options = root, options
        self._read: dict[Path, LabelTable] = {}

    @classmethod
    def from_options(
        cls, name: str, root: str | None, tables: Mapping[str, str | None], options: TableOptions
    ) -> "LabelledFiles | None":
        """Return the tables that the options of a data set name, or None if they name none.

        Raises:
            DataError: options that contradict each other, or no folder of images.
        """
        files = {split: Path(file).expanduser() for split, file in tables.items() if file is not None}
        given = [f"--data.{TABLES[split]} {file}" for split, file in files.items()] + options.given
        if "train" not in files:
            if given:
                raise DataError(
                    f"{given[0]} goes with --data.labels FILE.csv: add it, or leave {given[0].split()[0]} out"
                )
            return None
        if name != "folder":
            raise DataError(f"{given[0]} is for images in files: {name} has labels of its own")
        if root is not None and not Path(root).is_dir():
            raise DataError(f"no folder {root}: with --data.labels, --data.root names the folder of the images")
        return cls(files, None if root is None else Path(root), options)

    def table(self, split: str) -> LabelTable:
        """Return the table of a split, which is read once."""
        file = self.files[split]
        if file not in self._read:
            self._read[file] = read_table(file, self.options)
        return self._read[file]

    def reading(self, split: str) -> dict[str, Any]:
        """Return the options of a data set that open the table of a split alone."""
        return {"labels": str(self.files[split]), **vars(self.options)}

    def multi_label(self, splits: Iterable[str]) -> bool:
        """Return whether the images of splits may have any number of labels.

        Raises:
            DataError: only those of some splits.
        """
        kinds = {self.table(split).multi_label: self.table(split).file for split in splits}
        if len(kinds) > 1:
            raise DataError(
                f"{kinds[True]} has several labels per image, {kinds[False]} has one: write both tables in one way"
            )
        return True in kinds

    def has_split(self, split: str) -> bool:
        """Return whether a split has a table of its own, or rows of one of its usual names."""
        return split in self.given or not set(SPLITS[split]).isdisjoint(self.table(split).splits or ())

    def check_divided(self) -> None:
        """Check that there are tables, or rows, for both training and validation; warn of images in both tables.

        Raises:
            DataError: all images are in one.
        """
        table, validation = self.table("train"), self.files["validation"]
        if table.splits is not None:
            return
        if not self.has_split("validation"):
            raise DataError(
                f"{table.file} has no column split: pass --data.val_share 0.2, or --data.val_labels FILE.csv"
            )
        same_folder = self.root is not None or table.file.parent == validation.parent
        if same_folder and (both := set(table.paths).intersection(self.table("validation").paths)):
            rank_zero_warn(
                f"{validation} has {counted(len(both), 'image')} of {table.file}, such as {min(both)}: the validation "
                "is optimistic; remove them from one table"
            )

    def open(
        self,
        split: str,
        wanted: str | None = None,
        class_to_idx: Mapping[str, int] | None = None,
        class_map: Mapping[str, str] | None = None,
        mode: Mode = "RGB",
    ) -> FileSource:
        """Open a split; arguments as of :func:`~visionattn.data.sources.open_source`.

        Raises:
            DataError: no such split, classes that ``class_to_idx`` does not know, or missing images.
        """
        table = self.table(split)
        if wanted is not None and table.splits is None:
            raise DataError(f"{table.file} has no column split: leave out --data.{OPTIONS[split]} {wanted}")
        rows = table.rows_of((wanted,) if wanted else SPLITS[split], f"--data.{OPTIONS[split]}")
        targets = table.targets[rows]
        if table.one_column_each:
            used = np.arange(len(table.names))
        else:
            used = np.flatnonzero(targets.any(axis=0)) if table.multi_label else np.unique(targets)
        labels = [table.names[number] for number in used]
        check_class_names(table.file, labels)
        found, class_to_idx = number_classes(table.file, labels, class_to_idx, class_map, "label")
        numbers = np.asarray([found[label] for label in labels], dtype=int)
        extensions = image_extensions() | (EXTENSIONS if isinstance(mode, int) else frozenset())
        paths = find_images(table, rows, self.root or table.file.parent, extensions)
        if not table.multi_label:
            renumbered = numbers[np.searchsorted(used, targets)].tolist()
            return FileSource(list(zip(paths, renumbered, strict=True)), class_to_idx, mode)
        matrix = np.zeros((len(rows), len(class_to_idx)), dtype=np.bool_)
        for column, number in zip(used, numbers, strict=True):
            matrix[:, number] |= targets[:, column]
        return MultiLabelSource(paths, matrix, class_to_idx, mode)


def split_rows(sources: Mapping[str, Source], class_names: Sequence[str], root: str | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table of the images of splits, which :class:`LabelledFiles` reads.

    Paths below ``root`` are relative to it, others absolute. Several labels have a column each.
    """
    base = os.path.join(root or "", "")  # noqa: PTH118  a million strings
    for split, source in sources.items():
        for index, target in enumerate(source.targets()):
            name = source.name_of(index)
            if root and name.startswith(base):
                name = name[len(base) :]
            elif os.path.exists(name):  # noqa: PTH110
                name = os.path.abspath(name)  # noqa: PTH100
            label = (
                {"label": class_names[target]}
                if isinstance(target, int)
                else zip(class_names, target.astype(int), strict=True)
            )
            yield {"path": name, **dict(label), "split": split}


def find_images(table: LabelTable, rows: npt.NDArray[np.intp], root: Path, extensions: Collection[str]) -> list[str]:
    """Return the files of rows of a table; a path without one of the extensions finds the one image of that name.

    Raises:
        DataError: a file is missing.
    """
    folders: dict[str, _Folder] = {}
    found: list[str] = []
    missing: list[int] = []
    for row in rows.tolist():
        folder, name = os.path.split(os.path.join(root, table.paths[row]))  # noqa: PTH118  a million strings
        if folder not in folders:
            folders[folder] = _Folder(folder, extensions)
        if file := folders[folder].find(name):
            found.append(file)
        else:
            missing.append(row)
    if missing:
        more = f" (nor {counted(len(missing) - 1, 'other')} of {len(rows):,})" if len(missing) > 1 else ""
        first = os.path.join(root, table.paths[missing[0]])  # noqa: PTH118
        raise DataError(
            f"{table.file}, line {table.lines[missing[0]]}: there is no image {first}{more}: correct the row, or name "
            "the folder of the images with --data.root"
        )
    return found


class _Folder:
    """The names of the files in a folder, which are listed once: a million files are not looked up one by one."""

    def __init__(self, path: str, extensions: Collection[str]) -> None:
        self.path, self.extensions = path, extensions
        try:
            with os.scandir(path) if os.path.isdir(path) else nullcontext(()) as entries:  # noqa: PTH112
                self.names = frozenset(entry.name for entry in entries if not entry.is_dir())
        except PermissionError as error:
            raise no_permission(path) from error
        self._by_stem: dict[str, str | None] | None = None

    def find(self, name: str) -> str | None:
        """Return the path of a file, or None if it is missing."""
        if name not in self.names:
            name = self._complete(name) or ""
        return os.path.join(self.path, name) if name else None  # noqa: PTH118

    def _complete(self, stem: str) -> str | None:
        if self._by_stem is None:
            self._by_stem = {}
            for name in self.names:
                own, extension = os.path.splitext(name)  # noqa: PTH122
                if extension.lower() in self.extensions:
                    self._by_stem[own] = None if own in self._by_stem else name
        return self._by_stem.get(stem)
