"""results/recipes.py: accuracy on held-out images against time, from run folders."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from results.pages import read_table


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script, and let it write to another folder."""
    module = import_module("results.recipes")
    for name, place in {"TABLE": "t.csv", "PLOT": "p.png", "PAGE": "page.md"}.items():
        monkeypatch.setattr(module, name, tmp_path / place)
    (tmp_path / "page.md").write_text(f"before\n{module.BEGIN}\nold\n{module.END}\nafter\n")
    return module


def write_run(folder: Path, scores: list[float], seconds: float, **model: object) -> Path:
    """Write what a training leaves behind, as far as the script reads it."""
    folder.mkdir(parents=True)
    summary = {"model": "nat_pico", "train_seconds": seconds, "precision": "bf16-mixed"}
    summary["hardware"] = {"name": "CPU", "threads": 1}
    (folder / "summary.json").write_text(json.dumps(summary))
    config = {"model": {"opt": "nmuon", "lr": 0.01, "model_kwargs": None, **model}, "data": {"batch_size": 128}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [line for i, score in enumerate(scores) for line in (f"{i},1.5,", f"{i},,{score}")]
    (folder / "metrics.csv").write_text("\n".join(["epoch,train_loss,val_top1", *lines]))
    return folder


def test_each_epoch_gets_a_row_and_each_run_a_line(script: ModuleType, tmp_path: Path) -> None:
    first = write_run(tmp_path / "a" / "0", [0.5, 0.7, 0.6], 360)
    second = write_run(tmp_path / "b" / "0", [0.75], 60, model_kwargs={"cpe": True}, mixup=0.2, cutmix=0.0)
    assert script.main([str(first)]) == 0
    assert script.main([str(second)]) == 0
    rows = read_table(tmp_path / "t.csv")
    found = [(row["run"], row["epoch"], row["minutes"], row["held_out_top1"]) for row in rows]
    assert found == [
        ("a", "1", "2.0", "50.0"),
        ("a", "2", "4.0", "70.0"),
        ("a", "3", "6.0", "60.0"),
        ("b", "1", "1.0", "75.0"),
    ]
    before, _, table = (tmp_path / "page.md").read_text().partition("|---:|\n")
    assert before.startswith("before\n")
    assert table == (
        "| `nat_pico` | nmuon, rate 0.01, batches of 128, mixup 0.2, cpe True | 1 | 1 | 75.00 |\n"
        "| `nat_pico` | nmuon, rate 0.01, batches of 128 | 3 | 6 | 70.00 |\n"
        f"{script.END}\nafter\n"
    )
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_run_is_replaced_by_a_newer_one_of_its_name(script: ModuleType, tmp_path: Path) -> None:
    assert script.main([str(write_run(tmp_path / "old" / "a" / "0", [0.5, 0.7], 120))]) == 0
    assert script.main([str(write_run(tmp_path / "new" / "a" / "0", [0.8], 60))]) == 0
    assert [row["held_out_top1"] for row in read_table(tmp_path / "t.csv")] == ["80.0"]


def test_no_empty_plot_is_left(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(script, "save_figure", lambda figure, path: figures.append(figure))
    assert script.main([str(write_run(tmp_path / "a" / "0", [0.5, 0.7], 120))]) == 0
    assert [axes.get_title() for axes in figures[0].axes] == ["nat_pico"]
