"""The fingerprint of images: whatever changes a byte changes it, and nothing else."""

import os
from pathlib import Path

import pytest

from visionattn.probing.features import contents
from visionattn.probing.features.contents import fingerprint


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"12345")
    return paths


def rewrite(path: Path, content: bytes) -> None:
    """Write a file such that its size and its date are those of before."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of file systems is coarse
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_fingerprint_is_of_names_order_and_contents(files: list[Path]) -> None:
    hashes = [fingerprint(files), fingerprint(files[::-1]), fingerprint(["a.png", "b.png"]), fingerprint([b"12345"])]
    assert len(set(hashes)) == 4
    rewrite(files[0], b"54321")
    assert fingerprint(files) not in hashes
    rewrite(files[0], b"12345")
    os.utime(files[0], (0, 0))
    assert fingerprint(files) == hashes[0], "dates are no contents"
    copies = [path.parent / "copy" / path.name for path in files]
    copies[0].parent.mkdir()
    for path, copy in zip(files, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    assert fingerprint(copies) != hashes[0]
    bases = [str(path.parent) for path in (files[0], copies[0])]
    assert fingerprint(files, base=bases[0]) == fingerprint(copies, base=bases[1])


def test_memory_reads_changed_files_again(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "SETTLED_NS", -(10**12))  # so that the files of this test are old enough
    memory, calls = tmp_path / "memory", []
    read = contents._hash_contents
    monkeypatch.setattr(contents, "_hash_contents", lambda *args: calls.append(args) or read(*args))
    first = fingerprint(files, memory)
    assert fingerprint(files, memory) == first == fingerprint(files)
    assert len(calls) == 2, "with the memory once, and without it"
    rewrite(files[1], b"54321")
    changed = fingerprint(files, memory)
    rewrite(files[1], b"12345")
    assert fingerprint(files, memory) == first != changed
    assert len(calls) == 4
    assert fingerprint([b"1", *files], memory) != fingerprint([b"2", *files], memory)
    (record, *_) = sorted(memory.iterdir())
    record.write_text("damaged")
    assert fingerprint(files, memory) == first


def test_memory_forgets_files_that_may_change_without_a_new_date(files: list[Path], tmp_path: Path) -> None:
    fingerprint(files, tmp_path / "memory")
    assert not (tmp_path / "memory").exists()


def test_unreadable_file_is_another_content(files: list[Path]) -> None:
    before = fingerprint(files)
    files[0].unlink()
    assert fingerprint(files) != before


def test_names_and_folders_that_are_not_utf8_have_a_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    file = folder / os.fsdecode(b"\xe9.png")
    file.write_bytes(b"12345")
    found = fingerprint([file], tmp_path / "memory", base=str(folder))
    assert found == fingerprint([file], base=str(folder)) != fingerprint([file])
