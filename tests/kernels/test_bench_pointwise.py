from pathlib import Path

import pytest

from kernels.bench import pointwise
from kernels.bench.report import read_rows


def test_quick_run_measures_both_ways(tmp_path: Path) -> None:
    output = tmp_path / "pointwise-cpu.csv"
    assert pointwise.main(["--quick", "--threads", "1", "--repeats", "1", "--output", str(output)]) == 0
    rows = read_rows(output)
    assert {(row["direction"], row["contender"]) for row in rows} == {
        (direction, name) for direction in ("forward", "forward+backward") for name in ("product", "convolution")
    }
    assert all(float(row["gflops"]) > 0 for row in rows)


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"product": pointwise.product, "convolution": lambda *x: pointwise.convolution(*x) * 1.1}
    monkeypatch.setattr(pointwise, "LAYERS", wrong)
    assert pointwise.main(["--quick", "--threads", "1"]) == 1
    assert "differs from float64" in capsys.readouterr().err
