"""The benchmark of search beside faiss: contenders search the same vectors, each in a process of its own."""

import json
from typing import Any

import pytest
import torch

from kernels.bench import report, search

SMALL = ["--vectors", "300", "--dim", "8", "--threads", "1", "--repeats", "1"]


@pytest.mark.usefixtures("same_threads")
def test_contender_prints_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main([*SMALL, "--contender", "visionattn, torch"]) == 0
    found = json.loads(capsys.readouterr().out)
    gallery, query = (search.random_vectors(count, 8, seed) for count, seed in ((300, 0), (1000, 1)))
    torch.testing.assert_close(gallery.norm(dim=1), torch.ones(300))
    expected = (query @ gallery.T).topk(search.TOPK).indices
    median_ms, places = found["searches"]["1000"]
    assert median_ms > 0
    assert (torch.tensor(places) == expected).float().mean() > 0.999


@pytest.mark.slow
@pytest.mark.usefixtures("same_threads")
def test_rows_name_the_share_of_equal_results(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    assert search.main([*SMALL, "--output", str(tmp_path / "s.csv")]) == 0
    rows = report.read_rows(tmp_path / "s.csv")
    assert [(row["contender"], row["queries"], row["same"]) for row in rows] == [
        ("visionattn, torch", "1", "1"),
        ("visionattn, torch", "1000", "1"),
    ]
