"""``eval.py probe`` in this process, with a small ViT and few epochs."""

import json
from pathlib import Path
from typing import Any

import pytest

from visionattn.cli.errors import run
from visionattn.cli.evaluate import main

KWARGS = {"img_size": 32, "patch_size": 8, "depth": 2}
FAST = ["--device", "cpu", "--data.num_workers", "0", "--features.dtype", "float32", "--training.epochs", "2"]
FAST += ["--training.batch_size", "4", "--training.lrs", "1e-3,1e-2"]
VIT = ["--model", "test_vit", "--model_kwargs", json.dumps(KWARGS)]


def probe(*argv: str | Path) -> int:
    return run(main, ["probe", *FAST, *map(str, argv)])


def results(path: Path) -> list[dict[str, Any]]:
    """Return the rows of results, without durations."""
    rows = json.loads(path.read_text())["results"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line on stderr that is not a warning."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]
