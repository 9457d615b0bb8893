"""Text, JSON and CSV files that are whole or absent, and checks before the work that they can be written."""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visionattn.io import replacing

FORMATS = (".csv", ".json", ".jsonl", ".parquet", ".md", ".yaml", ".yml", ".png", ".pdf", ".svg", ".xlsx")
"""Suffixes that name a format."""


def write_text(text: str, path: str | Path) -> None:
    """Write ``text`` atomically; make missing folders."""
    _write_atomically(path, lambda file: file.write(text))


def write_json(values: Mapping[str, Any], path: str | Path) -> None:
    """Write ``values`` atomically; make missing folders."""
    write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", path)


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write ``rows``, whose keys are the columns, atomically; make missing folders."""

    def write(file: Any) -> None:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)

    _write_atomically(path, write)


def check_writable(*paths: str | Path | None, **formats: Path | None) -> None:
    """Make the folders of files before the work, so that errors come before it.

    Args:
        *paths: files of any format.
        **formats: files of a format, by its suffix, as in ``json=output``.

    Raises:
        ValueError: one of the paths is a folder, lies where no file can be made, or has the suffix of another format.
    """
    for suffix, path in formats.items():
        if path is not None and path.suffix.lower() in FORMATS and path.suffix.lower() != f".{suffix}":
            raise ValueError(f"{path} would hold {suffix.upper()}: name it {path.with_suffix(f'.{suffix}').name}")
    for path in [Path(path).expanduser() for path in (*paths, *formats.values()) if path is not None]:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name a file in it")
        _check_folder(path.parent, path)


def check_folder(*paths: str | Path | None) -> None:
    """Make folders for files before the work.

    Raises:
        ValueError: one of the paths is a file, or lies where no folder can be made.
    """
    for path in [Path(path).expanduser() for path in paths if path is not None]:
        _check_folder(path, path)


def _check_folder(folder: Path, named: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {named}: {error.strerror}; name a place elsewhere") from error


def _write_atomically(path: str | Path, write: Callable[[Any], object]) -> None:
    # Paths may hold bytes that are not UTF-8; JSON reads their escaped form as the same path.
    with (
        writing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        write(file)


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, as `visionattn.io.replacing` does; make missing folders.

    Raises:
        OSError: the file cannot be written; the message names it and the remedy.
    """
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {path}: {reason}; make room there, or name a place elsewhere") from error
