"""results/recall.py: rows of trainings, and tables and plot of rows."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from visionattn.output import write_csv


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script, and let it write to another folder."""
    module = import_module("results.recall")
    monkeypatch.chdir(tmp_path)
    for name, file in (("TABLE", "t.csv"), ("PAGE", "page.md"), ("PLOT", "p.png")):
        monkeypatch.setattr(module, name, tmp_path / file)
    (tmp_path / "page.md").write_text(f"before\n{module.BEGIN}\nold\n{module.END}\nafter\n")
    return module


def test_training_gives_a_row(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"trainer.max_epochs": 1, "data.train_length": 64, "data.val_length": 8}
    monkeypatch.setattr(script, "FURTHER", few)
    row = script.train(script.Run("map", "14 pairs", "taylor + window", 1, tmp_path / "runs"))
    assert (row["problem"], row["setting"], row["mixer"], row["seed"], row["steps"]) == (
        "map", "14 pairs", "taylor + window", 1, 1
    )  # fmt: skip
    assert 0 <= row["score"] <= 1
    assert '--model.mixer=["taylor", "neighborhood"]' in row["command"].replace("'", "")
    assert "--data.pairs=14" in row["command"]


def test_page_has_means_and_deviations_and_finished_runs_are_not_repeated(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = script.PROBLEMS["map"]
    mixers = {name: problem.mixers[name] for name in ("full", "core")}
    monkeypatch.setattr(script, "PROBLEMS", {"map": replace(problem, mixers=mixers)})
    monkeypatch.setattr(script, "SEEDS", (0, 1))
    scores = {"full": 1.0, "core": 0.5}
    common = {"parameters": 1234, "steps": 1500, "minutes": 2, "hardware": "a CPU", "torch": torch.__version__}
    rows = [
        {"problem": run.problem, "setting": run.setting, "mixer": run.mixer, "seed": run.seed, **common}
        | {"score": scores[run.mixer] - run.seed / 10}
        for run in script.plan(["map"], tmp_path)
    ]
    write_csv(rows, script.TABLE)
    assert script.main([]) == 0
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before\n<!-- recall")
    assert page.endswith("<!-- recall ends -->\nafter\n")
    assert "| core | 1,234 | 45.0 ± 7.1 | 45.0 ± 7.1 |" in page
    assert "| 64 | 64 |" in page
    assert "Each run has 1,500 updates; the longest took 2.0 minutes." in page
    assert (tmp_path / "p.png").is_file()
    assert not (tmp_path / "runs").exists()


def test_local_fit_beats_a_linear_one_only_across_regions(script: ModuleType) -> None:
    one, four = (script.fit_regression({"regions": regions}) for regions in (1, 4))
    assert one["linear"] < 1e-6
    assert one["local constant"] > 0.1
    assert four["local linear"] < 0.9 * four["linear"]
    assert four["constant"] == pytest.approx(1, abs=0.1)
