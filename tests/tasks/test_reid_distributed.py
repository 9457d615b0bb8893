"""Two processes on the CPU do together what one does."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.reid_in_processes import create, create_trainer


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.tasks.reid_in_processes", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def test_measures_equal_one_process(both: dict[str, Any]) -> None:
    task, data = create()
    (expected,) = create_trainer().validate(task, datamodule=data, verbose=False)
    assert set(expected) == {"val_mAP", "val_mINP", "val_rank1", "val_rank5", "val_rank10"}
    for rank in range(2):
        assert both[f"validate{rank}"]["metrics"] == pytest.approx(expected, abs=1e-6)
    names = [name for rank in range(2) for name in both[f"validate{rank}"]["evaluated"]]
    assert sorted(names) == sorted(name for batch in data.val_dataloader() for name in batch.name)
    assert all(both[f"validate{rank}"]["evaluated"] for rank in range(2))


def test_batches_are_disjoint_and_weights_and_centres_stay_the_same(both: dict[str, Any]) -> None:
    first, second = (both[f"fit{rank}"] for rank in range(2))
    assert len(first["trained"]) == len(second["trained"]) > 0
    names = [{name for batch in rank["trained"] for name in batch} for rank in (first, second)]
    assert not names[0] & names[1]
    assert all(max(Counter(batch).values()) == 1 for rank in (first, second) for batch in rank["trained"])
    for what in ("weight", "centers"):
        assert first[what] == pytest.approx(second[what], rel=1e-6)
        assert first[what] != 0
