"""``eval.py leaderboard`` on results of ``eval.py probe``."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.probing import VIT, error_line, probe, results
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.cli.leaderboard import collect


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder of the test's own, where the default cache lies."""
    monkeypatch.chdir(tmp_path)


def test_leaderboard_holds_seeds_and_few_shot_results(tmp_path, colour_folder, capsys):
    argv = [*VIT, "--data.root", colour_folder, "--heads", "linear,ep_4,knn"]
    for seed in (0, 1):
        assert probe(*argv, "--training.seed", str(seed), "--output", tmp_path / f"seed{seed}.json") == 0
    shots = ["--training.shots", "1,2,3", "--training.repeats", "2"]
    assert probe(*argv, *shots, "--output", tmp_path / "shots.json", "--csv", tmp_path / "shots.csv") == 0
    rows = results(tmp_path / "shots.json")
    assert [(row["shots"], row["head"]) for row in rows] == [
        (shots, head) for shots in (1, 2, 3) for head in ("linear", "ep_4", "knn")
    ]
    for row in rows:
        assert row["selected_on"] == ("fixed" if row["shots"] == 1 else "held_out")
        assert row["top1"] == pytest.approx(sum(draw["top1"] for draw in row["draws"]) / 2)
    chosen = {row["head"]: [(draw["lr"], draw["epoch"], draw["options"]) for draw in row["draws"]] for row in rows[:3]}
    assert chosen["linear"] == chosen["ep_4"] == [(1e-3, 2, {})] * 2, "the first of two rates, and the last epoch"
    assert chosen["knn"] == [(None, None, {"features": "cls", "k": 20, "temperature": 0.1})] * 2
    printed = capsys.readouterr().out
    assert "±" in printed
    assert "linear, ep_4, knn with one image per class: fixed, not chosen" in printed

    files = [tmp_path / f"{name}.json" for name in ("seed0", "seed1", "shots")]
    board = ["--output", str(tmp_path / "new" / "board.md")]
    assert run(main, ["leaderboard", *board, "--results", *map(str, files)]) == 0
    text = (tmp_path / "new" / "board.md").read_text()
    assert capsys.readouterr().out == text
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## colours, 12 training images",
        "## colours, 1 training images per class",
        "## colours, 2 training images per class",
        "## colours, 3 training images per class",
    ]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("## ")[1].splitlines()[2:] if line]
    assert table[0][2:5] == ["head", "parameters", "top-1 (%)"]
    both = [results(path) for path in files[:2]]
    means = {row["head"]: 50 * (row["top1"] + other["top1"]) for row, other in zip(*both, strict=True)}
    shown = {row[2]: float(row[4].split()[0]) for row in table[2:]}
    assert shown == {head: pytest.approx(mean, abs=0.006) for head, mean in means.items()}
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert {row[-1] for row in table[2:]} == {"2"}
    with Image.open(tmp_path / "new" / "board.png") as image:
        assert image.size[0] > image.size[1]


def test_leaderboard_separates_other_weights_and_other_data_of_the_same_name(tmp_path, colour_folder):
    assert probe(*VIT, "--data.root", colour_folder, "--heads", "knn", "--output", tmp_path / "r.json") == 0
    (row,) = results(tmp_path / "r.json")
    older = {key: value for key, value in row.items() if not key.endswith("hash")}
    seeds = [row, {**row, "seed": 1}, {**row, "weights_hash": "f00dfeed00"}, {**row, "data_hash": "beef"}, older]
    named = [(subject.table, subject.backbone, len(entry.top1)) for subject, entry in collect(seeds).items()]
    title, weights, data = "colours, 12 training images", row["weights_hash"][:8], row["data_hash"][:8]
    assert named == [
        (f"{title}, data {data}", f"test_vit (random), weights {weights}", 2),
        (f"{title}, data {data}", "test_vit (random), weights f00dfeed", 1),
        (f"{title}, data beef", f"test_vit (random), weights {weights}", 1),
        (f"{title}, data unknown", "test_vit (random), weights unknown", 1),
    ]
    assert [subject.backbone for subject in collect(seeds[:2])] == ["test_vit (random)"]
    shutil.copytree(colour_folder, elsewhere := tmp_path / "elsewhere" / "colours")
    assert probe(*VIT, "--data.root", elsewhere, "--heads", "knn", "--output", tmp_path / "c.json") == 0
    assert len(collect([row, *results(tmp_path / "c.json")])) == 1, "a copy is no other data set"


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["gone*.json"], 1, "no results at gone*.json"),
        (["other.json"], 1, "other.json holds no results of eval.py probe --output: leave it out"),
        (["other.json", "--output", "board.txt"], 2, "must be a Markdown file, NAME.md, got board.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_leaderboard_errors_are_one_line_that_names_the_file(capsys, options, status, says):
    Path("other.json").write_text('{"results": [{}]}')
    assert run(main, ["leaderboard", "--results", *options]) == status
    assert says in error_line(capsys)
