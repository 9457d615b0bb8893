"""Tables that grow row by row: CSV, JSON and Parquet files that have their name once they are whole."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol, Self

from visionattn.io import put
from visionattn.output import check_writable

SUFFIXES = (".csv", ".json", ".parquet")
ROWS_PER_GROUP = 8192
"""Rows that Parquet compresses together, and that are held in memory."""


def check_row_file(path: Path, option: str = "--output") -> None:
    """Check before the work that rows can be written to a file.

    Raises:
        ValueError: another suffix, a place where no file can be made, or Parquet without its package.
    """
    if path.suffix.lower() not in ("", *SUFFIXES):
        raise ValueError(f"{option} {path}: the formats are {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet" and not find_spec("pyarrow"):
        raise ValueError(f'{option} {path} needs pyarrow, which is not installed: pip install "visionattn[parquet]"')
    check_writable(path)


class RowFile:
    """A table that is written batch by batch: as a context, or from `open` to `close`.

    Until it is whole, it is named ``NAME.part.SUFFIX``. After an error that file remains, with the rows so far.

    Args:
        path: the file: JSON objects in ``.json``, Parquet in ``.parquet``, otherwise CSV. Its folder is made.
        columns: name and type, ``str``, ``int`` or ``float``, of each column; a value may be None.
    """

    def __init__(self, path: Path, columns: Mapping[str, type]) -> None:
        self.path, self.columns = Path(path).expanduser(), dict(columns)
        self.part = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
        self.count = 0
        self._writer: _Rows | None = None

    def open(self) -> None:
        """Begin the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kinds: dict[str, Callable[[Path, Mapping[str, type]], _Rows]] = {".json": _Json, ".parquet": _Parquet}
        self._writer = kinds.get(self.path.suffix.lower(), _Csv)(self.part, self.columns)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, whose keys are columns."""
        assert self._writer is not None
        rows = list(rows)
        self._writer.write(rows)
        self.count += len(rows)

    def close(self, whole: bool = True) -> None:
        """End the file; if it is ``whole``, give it its name."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        writer.close()
        if whole:
            put(self.part, self.path)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(whole=kind is None)


class _Rows(Protocol):
    """A file of rows in one format."""

    def write(self, rows: list[Mapping[str, Any]]) -> None:
        """Add rows."""

    def close(self) -> None:
        """Complete the file."""


class _Csv:
    def __init__(self, path: Path, columns: Mapping[str, type]) -> None:
        self.file: IO[str] = path.open("w", encoding="utf-8", newline="")
        self.writer = csv.DictWriter(self.file, list(columns))
        self.writer.writeheader()

    def write(self, rows: list[Mapping[str, Any]]) -> None:
        for row in rows:
            self.writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()})

    def close(self) -> None:
        self.file.close()


class _Json:
    def __init__(self, path: Path, columns: Mapping[str, type]) -> None:
        self.file: IO[str] = path.open("w", encoding="utf-8")
        self.between = "[\n "

    def write(self, rows: list[Mapping[str, Any]]) -> None:
        for row in rows:
            rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
            self.file.write(self.between + json.dumps(rounded, ensure_ascii=False))
            self.between = ",\n "

    def close(self) -> None:
        self.file.write("[]\n" if self.between.startswith("[") else "\n]\n")
        self.file.close()


class _Parquet:
    def __init__(self, path: Path, columns: Mapping[str, type]) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        types = {str: pa.string(), int: pa.int64(), float: pa.float32()}
        self.schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
        self.writer, self.rows = ParquetWriter(path, self.schema), list[Mapping[str, Any]]()

    def write(self, rows: list[Mapping[str, Any]]) -> None:
        self.rows += rows
        if len(self.rows) >= ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        if self.rows:
            self._flush()
        self.writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.Table.from_pylist(self.rows, self.schema))
        self.rows = []
