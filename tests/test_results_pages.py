"""results/pages.py: rows of a table that several processes write, and cells of a page."""

from pathlib import Path

from results.pages import add_row, mean_and_deviation, read_table


def test_row_takes_its_place_among_those_of_other_processes(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    assert read_table(table) == []
    for name, score in (("c", 1), ("a", 2), ("b", 3), ("a", 4)):
        rows = add_row(table, {"name": name, "score": score}, lambda row: row["name"])
    assert rows == read_table(table)
    assert [(row["name"], row["score"]) for row in rows] == [("a", "4"), ("b", "3"), ("c", "1")]


def test_deviation_needs_two_values() -> None:
    assert [mean_and_deviation(values, 1) for values in ([], [1.0], [1.0, 2.0])] == ["–", "1.0", "1.5 ± 0.7"]
