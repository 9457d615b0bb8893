"""Files that are written whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from visionattn.cli.report import write_json, write_text
from visionattn.files import as_text, replacing, save_weights


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("half of it, \u00e9", encoding="ascii")
    assert path.read_text() == "before"
    with replacing(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_names_are_text_whatever_bytes_they_hold() -> None:
    assert as_text(os.fsdecode(b"caf\xe9 \xff") + " Käse 猫") == r"caf\xe9 \xff Käse 猫"
    assert as_text("\ud83d") == r"\ud83d"


def test_results_with_a_path_that_is_not_utf8_read_back(tmp_path: Path) -> None:
    root = os.fsdecode(b"caf\xe9")
    write_json({"root": root}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"root": root}


def test_weights_that_share_memory(tmp_path: Path) -> None:
    path, weights = tmp_path / "w.safetensors", torch.randn(3, 4)
    save_weights({"a": weights, "b": weights, "c": weights.T}, path, {"format": "pt"})
    found = load_file(path)
    assert torch.equal(found["b"], weights)
    assert torch.equal(found["c"], weights.T)


def test_others_may_read_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text("text", tmp_path / "t.txt")
        save_weights({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [0o640, 0o640]
