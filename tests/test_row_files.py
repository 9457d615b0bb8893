"""Tables that grow row by row: the same rows in every format, and a part after an error."""

import csv
import json
from pathlib import Path

import pytest

from visionattn.row_files import RowFile, check_row_file

COLUMNS = {"file": str, "probability": float, "error": str}
ROWS = [
    {"file": 'a, "b"\n.jpg', "probability": 0.123456789, "error": None},
    {"file": "é.jpg", "probability": None, "error": "cut"},
    {"file": "c.jpg", "probability": 1.0, "error": None},
]


def write(path: Path) -> None:
    with RowFile(path, COLUMNS) as file:
        file.write(ROWS[:2])
        file.write([])
        file.write(ROWS[2:])
    assert file.count == 3
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_json_has_an_object_for_each_row(tmp_path: Path) -> None:
    write(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found == [row | ({"probability": 0.123457} if row is ROWS[0] else {}) for row in ROWS]
    with RowFile(tmp_path / "empty.json", COLUMNS):
        pass
    assert json.loads((tmp_path / "empty.json").read_text()) == []


def test_csv_has_a_line_for_each_row(tmp_path: Path) -> None:
    write(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["file"] for row in found] == [row["file"] for row in ROWS]
    assert [row["probability"] for row in found] == ["0.123457", "", "1.000000"]
    assert [row["error"] for row in found] == ["", "cut", ""]


def test_parquet_keeps_types_and_missing_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("visionattn.row_files.ROWS_PER_GROUP", 2)
    write(tmp_path / "r.parquet")
    table = parquet.read_table(tmp_path / "r.parquet")
    assert [str(field.type) for field in table.schema] == ["string", "float", "string"]
    assert table["file"].to_pylist() == [row["file"] for row in ROWS]
    assert table["probability"].to_pylist() == [pytest.approx(0.123456789), None, 1.0]
    assert parquet.ParquetFile(tmp_path / "r.parquet").num_row_groups == 2


def test_old_file_stays_and_a_part_is_left_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("old")
    with pytest.raises(KeyboardInterrupt), RowFile(tmp_path / "r.csv", COLUMNS) as file:
        file.write(ROWS[2:])
        raise KeyboardInterrupt
    assert (tmp_path / "r.csv").read_text() == "old"
    assert "c.jpg" in (tmp_path / "r.part.csv").read_text()


def test_file_that_cannot_be_written_is_an_error_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_row_file(tmp_path / "new" / "r.csv")
    with pytest.raises(ValueError, match=r"--output .*r\.xlsx: the formats are \.csv, \.json, \.parquet"):
        check_row_file(tmp_path / "r.xlsx")
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        check_row_file(tmp_path)
    monkeypatch.setattr("visionattn.row_files.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs pyarrow, which is not installed: pip install "visionattn\[parquet\]"'):
        check_row_file(tmp_path / "r.parquet")
