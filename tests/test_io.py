"""Atomic file writes."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from visionattn.io import as_text, replacing, replacing_all, save_weights
from visionattn.output import write_json, write_text


def test_replacing_keeps_the_old_file_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("half of it, \u00e9", encoding="ascii")
    assert path.read_text() == "before"
    with replacing(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_by_an_only_writer_removes_leftovers_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    (tmp_path / ".last.new.ckpt").write_text("half of it")
    with replacing(path, only_writer=True) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_all_moves_every_file_or_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(UnicodeEncodeError), replacing_all(tmp_path) as folder:
        (folder / "a.txt").write_text("half of it, \u00e9", encoding="ascii")
    assert (tmp_path / "a.txt").read_text() == "before"
    with replacing_all(tmp_path) as folder:
        (folder / "a.txt").write_text("after")
        (folder / "b.txt").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "after", "b.txt": "new"}


def test_as_text_escapes_bytes_that_are_not_utf8() -> None:
    assert as_text(os.fsdecode(b"caf\xe9 \xff") + " Käse 猫") == r"caf\xe9 \xff Käse 猫"
    assert as_text("\ud83d") == r"\ud83d"


def test_write_json_keeps_paths_that_are_not_utf8(tmp_path: Path) -> None:
    root = os.fsdecode(b"caf\xe9")
    write_json({"root": root}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"root": root}


def test_save_weights_takes_tensors_that_share_memory(tmp_path: Path) -> None:
    path, weights = tmp_path / "w.safetensors", torch.randn(3, 4)
    save_weights({"a": weights, "b": weights, "c": weights.T}, path, {"format": "pt"})
    found = load_file(path)
    assert torch.equal(found["b"], weights)
    assert torch.equal(found["c"], weights.T)


def test_written_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text("text", tmp_path / "t.txt")
        save_weights({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [0o640, 0o640]
