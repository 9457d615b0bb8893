"""Files of features: what is written is read, also by NumPy and pyarrow alone; nothing is unpickled."""

import json
from pathlib import Path

import numpy as np
import pytest

from visionattn.embedding import Embeddings
from visionattn.embedding.files import write

NAMES = ["photos/a.jpg", "photos/ä 1.png", "photos/sub/b.jpg"]
ABOUT = {"model": "nat_pico", "preprocessing": {"mean": [0.5, 0.5, 0.5]}, "layer": "last"}


def make(shape: tuple[int, ...] = (4,), dtype: str = "float32") -> Embeddings:
    return Embeddings(NAMES, np.random.default_rng(0).normal(size=(3, *shape)).astype(dtype), ABOUT)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize(("shape", "dtype"), [((4,), "float32"), ((5, 4), "float16")], ids=["vectors", "tokens"])
def test_features_are_read_as_they_were_written(
    suffix: str, shape: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    made, path = make(shape, dtype), tmp_path / "new" / f"features{suffix}"
    made.save(path)
    found = Embeddings.load(path)
    assert (found.names, found.about) == (NAMES, ABOUT)
    assert found.features.dtype == dtype
    assert np.array_equal(found.features, made.features)
    assert len(found) == 3


def test_npz_is_read_by_numpy_without_pickle(tmp_path: Path) -> None:
    made, path = make(), tmp_path / "features.npz"
    write(path, NAMES, [made.features[:2], made.features[2:]], (4,), np.dtype("float32"), ABOUT)
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["about", "features", "names"]
        assert arrays["names"].tolist() == NAMES
        assert np.array_equal(arrays["features"], made.features)
        assert json.loads(str(arrays["about"])) == ABOUT


def test_parquet_has_a_row_group_for_each_part(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    made, path = make(), tmp_path / "features.parquet"
    write(path, NAMES, [made.features[:2], made.features[2:]], (4,), np.dtype("float32"), ABOUT)
    file = parquet.ParquetFile(path)
    assert file.num_row_groups == 2
    table = file.read()
    assert table.column_names == ["file", "features"]
    assert table["file"].to_pylist() == NAMES
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), made.features)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"PAR1 nonsense"], ids=["empty", "cut", "other"])
def test_damaged_file_is_named(suffix: str, content: bytes, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"features{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"features{suffix} holds no features of visionattn embed, or is damaged"):
        Embeddings.load(path)


def test_npz_of_other_arrays_and_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match="or is damaged"):
        Embeddings.load(path)
    np.savez(path, names=np.array([object()], object), features=np.zeros((1, 2)), about=np.array("{}"))
    with pytest.raises(ValueError, match="or is damaged"):
        Embeddings.load(path)
    with pytest.raises(FileNotFoundError):
        Embeddings.load(tmp_path / "absent.npz")
