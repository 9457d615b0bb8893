"""Features of images in memory and in files: NPZ, and Parquet through pyarrow."""

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import UserError
from visionattn.output import check_writable, writing

METADATA = b"visionattn"
"""Key of the description in the metadata of Parquet files."""

Features = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of images.

    Attributes:
        names: File of each image.
        features: Vectors `[N, D]`, or tokens `[N, num_tokens, D]`.
        about: Description in plain values: model, weights (a hash), preprocessing, layer, pooling, and more.
    """

    names: list[str]
    features: Features
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.names)

    def save(self, path: str | Path) -> None:
        """Write an `.npz` or `.parquet` file atomically; see `check_format` for errors."""
        check_format(path)
        write(path, self.names, [self.features], self.features.shape[1:], self.features.dtype, self.about)

    @classmethod
    def load(cls, path: str | Path) -> "Embeddings":
        """Read a file that `save` or `visionattn embed` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: Another suffix, pyarrow is missing, or the file is damaged or another one.
        """
        _check_suffix(path)
        try:
            return cls(*(_read_npz(Path(path)) if Path(path).suffix == ".npz" else _read_parquet(Path(path))))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no features of visionattn embed, or is damaged") from error


def check_format(path: str | Path) -> None:
    """Check before the work that a file can be written.

    Raises:
        ValueError: Its suffix is not that of a format, pyarrow is missing, or it lies where no file can be made.
    """
    _check_suffix(path)
    check_writable(path)


def _check_suffix(path: str | Path) -> None:
    suffix = Path(path).suffix
    if suffix not in (".npz", ".parquet"):
        raise UserError(f"{path}: features are in .npz or .parquet files")
    if suffix == ".parquet" and not find_spec("pyarrow"):
        raise UserError(
            f'{path} needs pyarrow, which is not installed: pip install "visionattn[parquet]", or name a .npz file'
        )


def write(
    path: str | Path,
    names: Sequence[str],
    parts: Iterable[Features],
    shape: Sequence[int],
    dtype: np.dtype[Any],
    about: Mapping[str, Any],
) -> None:
    """Write features of images part by part, `[n, *shape]` each, in the format of the suffix."""
    with writing(path) as temporary:
        if Path(path).suffix == ".npz":
            _write_npz(temporary, names, parts, shape, dtype, about)
        else:
            _write_parquet(temporary, names, parts, shape, dtype, about)


def _write_npz(
    path: Path,
    names: Sequence[str],
    parts: Iterable[Features],
    shape: Sequence[int],
    dtype: np.dtype[Any],
    about: Mapping[str, Any],
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(names), *shape)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in (("about", json.dumps(about)), ("names", names)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(values, np.str_), allow_pickle=False)
        # As np.savez, which wants all features at once.
        with archive.open("features.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype).tobytes())


def _read_npz(path: Path) -> tuple[list[str], Features, dict[str, Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["names"].tolist(), arrays["features"], json.loads(arrays["about"].item())


def _write_parquet(
    path: Path,
    names: Sequence[str],
    parts: Iterable[Features],
    shape: Sequence[int],
    dtype: np.dtype[Any],
    about: Mapping[str, Any],
) -> None:
    """Write a row group for each part."""
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.from_numpy_dtype(dtype)
    for length in reversed(shape):
        kind = pyarrow.list_(kind, length)
    schema = pyarrow.schema([("file", pyarrow.string()), ("features", kind)], {METADATA: json.dumps(about)})
    start = 0
    with pyarrow.parquet.ParquetWriter(path, schema) as file:
        for part in parts:
            values = pyarrow.array(np.ascontiguousarray(part, dtype).reshape(-1))
            for length in reversed(shape):
                values = pyarrow.FixedSizeListArray.from_arrays(values, length)
            rows = pyarrow.array(names[start : start + len(part)], pyarrow.string())
            file.write_table(pyarrow.table([rows, values], schema=schema))
            start += len(part)


def _read_parquet(path: Path) -> tuple[list[str], Features, dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, memory_map=True)
    values, shape = table["features"].combine_chunks(), [len(table)]
    while pyarrow.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        values = values.flatten()
    features = values.to_numpy(zero_copy_only=False).reshape(shape)
    return table["file"].to_pylist(), features, json.loads(table.schema.metadata[METADATA])
