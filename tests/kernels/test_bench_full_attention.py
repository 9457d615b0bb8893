from pathlib import Path

import pytest
from torch import Tensor

from kernels.bench import full_attention
from kernels.bench.report import read_rows


def test_quick_run_measures_both_ways(tmp_path: Path) -> None:
    output = tmp_path / "full-attention-cpu.csv"
    assert full_attention.main(["--quick", "--threads", "1", "--repeats", "1", "--output", str(output)]) == 0
    rows = read_rows(output)
    assert {(row["dtype"], row["direction"], row["contender"]) for row in rows} == {
        (dtype, direction, name)
        for dtype in ("float32", "bfloat16")
        for direction in ("forward", "forward+backward")
        for name in ("plain", "fused")
    }
    assert all(float(row["median_ms"]) > 0 for row in rows)


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, fused: bool) -> Tensor:
        return v * (q + k) * (2.0 if fused else 1.0)

    monkeypatch.setattr(full_attention, "attend", attend)
    assert full_attention.main(["--quick", "--threads", "1", "--dtype", "float32"]) == 1
    assert "not timed" in capsys.readouterr().err
