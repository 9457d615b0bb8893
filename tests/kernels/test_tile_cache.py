"""Files that keep the measured tiles of the Triton kernels."""

import json
import threading
from pathlib import Path

import pytest

from visionattn_kernels.attention.triton import tile_cache
from visionattn_kernels.attention.triton.plan import Tile

TILES = [Tile((4, 4), (4, 4), warps, 2) for warps in (1, 2, 4, 8)]
KEY = {"kernel": "forward", "window": [3, 3]}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))


def test_damaged_files_are_replaced() -> None:
    tile_cache.store(KEY, TILES[0], 0.5)
    (file,) = tile_cache.folder().iterdir()
    entry = json.loads(file.read_text())
    assert tile_cache.load(KEY) == TILES[0]
    for damaged in (
        "",
        file.read_text()[:-20],
        "[]",
        "{}",
        json.dumps(entry | {"tile": 3}),
        json.dumps(entry | {"tile": entry["tile"] | {"query": [3, 8]}}),
        json.dumps(entry | {"tile": entry["tile"] | {"query": [16]}}),
        json.dumps(entry | {"tile": entry["tile"] | {"key": [2, 2]}}),
        json.dumps(entry | {"tile": entry["tile"] | {"num_warps": "4"}}),
        json.dumps(entry | {"tile": entry["tile"] | {"num_stages": None}}),
        json.dumps(entry | {"tile": entry["tile"] | {"max_registers": -1}}),
        json.dumps(entry | {"tile": {"query": [4, 4]}}),
        json.dumps(entry | {"problem": {"kernel": "key"}}),
    ):
        file.write_text(damaged)
        assert tile_cache.load(KEY) is None, damaged
    file.write_bytes(b"\xff\xfe")
    assert tile_cache.load(KEY) is None
    tile_cache.store(KEY, TILES[1], 0.5)
    assert tile_cache.load(KEY) == TILES[1]
    assert list(tile_cache.folder().iterdir()) == [file]


def test_writers_at_the_same_time_lose_nothing() -> None:
    """A reader finds a whole entry or none, whoever writes."""
    keys = [KEY | {"number": i} for i in range(4)]
    found: list[Tile | None] = []

    def write(number: int) -> None:
        for tile in TILES * 5:
            tile_cache.store(keys[number], tile, 1.0)
            tile_cache.store(KEY, tile, 1.0)
            found.append(tile_cache.load(KEY))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(len(keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(keys) * 20
    assert set(found) <= set(TILES)
    assert [tile_cache.load(key) for key in keys] == [TILES[-1]] * len(keys)


def test_entries_of_the_old_format_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path))
    old = tmp_path / "triton_tiles.json"
    old.write_text(json.dumps({json.dumps(KEY): [[4, 4], [4, 4], 1, 2]}))
    assert tile_cache.load(KEY) is None
    tile_cache.store(KEY, TILES[0], 1.0)
    assert tile_cache.load(KEY) == TILES[0]
