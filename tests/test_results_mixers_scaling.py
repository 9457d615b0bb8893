"""results/mixers_scaling.py: every mixer is measured on every map; memory that is claimed linear is."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script, with small maps, and let it write to another folder."""
    module = import_module("results.mixers_scaling")
    replaced = {"TABLE": "t.csv", "PAGE": "page.md", "PLOT": "t.png"}
    for name, file in replaced.items():
        monkeypatch.setattr(module, name, tmp_path / file)
    monkeypatch.setattr(module, "SIDES", (8, 16))
    monkeypatch.setattr(module, "REPEATS", 1)
    (tmp_path / "page.md").write_text(f"before\n{module.BEGIN}\nold\n{module.END}\nafter\n")
    return module


def test_every_mixer_is_measured_on_every_map(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--threads", "1"]) == 0
    rows = script.read_rows(script.TABLE)
    expected = [
        (name, str(side), direction)
        for side in (8, 16)
        for name in script.MIXERS
        for direction in (script.FORWARD, script.TRAINING)
    ]
    assert [(row["mixer"], row["side"], row["direction"]) for row in rows] == expected
    assert all(float(row["peak_mib"]) > 0 < float(row["median_ms"]) for row in rows)
    assert {row["ratio_to_window"] for row in rows if row["mixer"] == script.WINDOW} == {"1"}
    assert script.PLOT.stat().st_size > 10_000
    text = (tmp_path / "page.md").read_text()
    assert text.startswith(f"before\n{script.BEGIN}\nForward and backward in milliseconds")
    assert text.endswith(f"{script.END}\nafter\n")
    assert text.count("\n| core | ") == text.count("\n| full | ") == 2
    assert capsys.readouterr().out.count("claimed: ") == 3


def test_claims_say_what_does_not_hold(script: ModuleType) -> None:
    found = {
        "ttt": ((1, 4, 17), (1, 1, 1)),
        "core": ((1, 4, 16), (1, 1, 1)),
        script.BLOCKS: ((1,), (2, 2, 3)),
        script.SMALLER_WINDOW: ((1,), (2, 2, 2)),
    }
    rows = [
        {"mixer": mixer, "direction": script.TRAINING, "peak_mib": str(peak), "median_ms": str(time)}
        for mixer, (peaks, times) in found.items()
        for peak, time in zip((peaks * 3)[:3], times, strict=True)
    ]
    assert script.claims(rows) == [
        "ttt: peak memory at 4 N at most 4.25 times that at N (claimed: 4.2, does not hold)",
        "core: peak memory at 4 N at most 4.00 times that at N (claimed: 4.2, holds)",
        "core, 8×8 blocks: time at most 1.50 times that of neighborhood 5×5 (claimed: 1.3, does not hold)",
    ]


@pytest.mark.parametrize("name", ["ttt", "core"])
def test_memory_is_linear_in_the_map(script: ModuleType, name: str) -> None:
    mixer, options = script.MIXERS[name]
    module, peaks = script.create_mixer(mixer, script.DIM, script.HEADS, **options), []
    for side in (32, 64):
        training = script.runs_of(module, side)[1]
        training()
        peaks.append(script.peak_bytes(training, torch.device("cpu")))
    assert peaks[1] < script.MOST_GROWTH * peaks[0]
