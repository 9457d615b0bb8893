"""Feature caches are complete and match their key, whatever happens: kills, flipped bytes, full disks, other models."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.processes import KILLED, kill_this_process, run_in_child
from visionattn.probing.features import cache as cache_module
from visionattn.probing.features.cache import Field, ShardedArrays
from visionattn.probing.features.extraction import FeatureCache, ImageBatch, extract_features
from visionattn.probing.frozen import FrozenBackbone, Layer

IMAGES, SHARD = 7, 4


class Noise:
    """Images of noise, a function of number and view."""

    def __init__(self, count: int = IMAGES, name: str = "noise", seed: int = 0) -> None:
        self.identity, self.augmentation, self.count = {"name": name}, {"seed": seed}, count
        self.targets = [number % 3 for number in range(count)]
        self.opened: list[tuple[int, list[list[int]]]] = []

    def __len__(self) -> int:
        return self.count

    def open(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterable[ImageBatch]:
        self.opened.append((view, [list(batch) for batch in batches]))
        for batch in batches:
            index = torch.tensor(batch)
            yield ImageBatch(torch.stack([noise(number, view) for number in batch]), index, [])


def noise(number: int, view: int) -> Tensor:
    return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1000 * view + number))


@cache
def backbone(seed: int = 0, layers: tuple[Layer, ...] = ("last",)) -> FrozenBackbone:
    torch.manual_seed(seed)
    kwargs = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "reg_tokens": 1}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **kwargs)
    return FrozenBackbone(model, "vit_tiny_patch16_224", layers, preprocessing={"input_size": (3, 16, 16)})


def extract(folder: Path, images: Noise | None = None, **options: Any) -> FeatureCache:
    options = {"token_budget_gb": 1, "views": 2, "batch_size": 3, "rows_per_shard": SHARD} | options
    return extract_features(options.pop("backbone", None) or backbone(), images or Noise(), folder, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A complete cache."""
    extract(tmp_path / "whole")
    return tmp_path / "whole"


def changed(before: dict[str, bytes], folder: Path) -> set[str]:
    after = content(folder)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_complete_cache_is_not_computed_again(whole: Path) -> None:
    before, images, calls = content(whole), Noise(), []
    with warnings.catch_warnings(action="error"):
        extract(whole, images, progress=lambda done, total: calls.append((done, total)))
    assert not any(batches for _, batches in images.opened)
    assert not calls
    assert not changed(before, whole)


def test_batches_end_with_their_shard(tmp_path: Path) -> None:
    images, calls = Noise(), []
    extract(tmp_path, images, progress=lambda done, total: calls.append((done, total)))
    numbers = [[0, 1, 2], [3], [4, 5, 6]]
    assert images.opened == [(0, numbers), (1, numbers)]
    assert calls == [(3, 14), (4, 14), (7, 14), (10, 14), (11, 14), (14, 14)]


def test_extraction_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    # A new interpreter with one thread: of one that has run several, no child could compute.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    whole, *killed = sorted(tmp_path.iterdir(), key=lambda folder: folder.name != "whole")
    assert len(killed) == len(content(whole)) - 1  # at each of its files but the lock
    for folder in killed:
        assert content(folder) == content(whole), folder


def test_flipped_byte_is_named_and_its_shard_computed_again(whole: Path) -> None:
    before = content(whole)
    for name in before:
        if not name.endswith(".npy"):
            continue
        flip(whole / name, len(before[name]) // 2)
        images = Noise()
        with pytest.warns(UserWarning, match=f"{name} is damaged: its shard is computed again"):
            extract(whole, images)
        assert not changed(before, whole)
        assert sum(len(batches) for _, batches in images.opened) <= 2  # one shard's


def test_damaged_descriptions_are_found(whole: Path) -> None:
    before = content(whole)
    for name in ("view0/00001.json", "manifest.json"):
        for place in range(0, len(before[name]), 11):
            flip(whole / name, place)
            with warnings.catch_warnings(action="ignore"):
                extract(whole)
            restored = changed(before, whole)
            # What the key does not need is only for people to read.
            assert restored <= {"manifest.json"} & {name}
            (whole / name).write_bytes(before[name])


def test_lost_and_shortened_files_are_found(whole: Path) -> None:
    before = content(whole)
    (whole / "view1" / "00001.last.tokens.npy").unlink()
    with (whole / "view0" / "00000.last.cls.npy").open("r+b") as file:
        file.truncate(150)
    with pytest.warns(UserWarning, match="is damaged") as caught:
        extract(whole)
    assert len(caught) == 2
    assert not changed(before, whole)


def test_verification_is_optional(whole: Path) -> None:
    flip(whole / "view0" / "00000.last.tokens.npy", 200)
    before = content(whole)
    with warnings.catch_warnings(action="error"):
        extract(whole, verify=False)
    assert not changed(before, whole)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


STALE: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "other weights": ("weights", lambda: {"backbone": backbone(seed=1)}),
    "other layers": ("layers", lambda: {"backbone": backbone(layers=(0,))}),
    "other type": ("dtype", lambda: {"dtype": "float32"}),
    "other images": ("images", lambda: {"images": Noise(name="other")}),
    "fewer images": ("number of images", lambda: {"images": Noise(IMAGES - 1)}),
    "more views": ("views", lambda: {"views": 3}),
    "other shards": ("shard size", lambda: {"rows_per_shard": 5}),
}


@pytest.mark.parametrize(("what", "options"), STALE.values(), ids=STALE)
def test_stale_cache_is_never_used(what: str, options: Callable[[], dict[str, Any]], whole: Path) -> None:
    before = content(whole)
    with pytest.raises(
        ValueError, match=rf"is stale \(it was made with other {what}\); let it be rebuilt or name"
    ) as error:
        extract(whole, rebuild=False, **options())
    assert "\n" not in str(error.value)
    assert not changed(before, whole)

    with pytest.warns(UserWarning, match=rf"is stale \(it was made with other {what}\): it is rebuilt"):
        extract(whole, **options())
    extract(whole.parent / "fresh", **options())
    assert content(whole) == content(whole.parent / "fresh")


def test_views_alone_are_stale_after_another_augmentation(whole: Path, tmp_path: Path) -> None:
    images = Noise(seed=1)
    with pytest.warns(UserWarning, match="other augmentation"):
        extract(whole, images)
    extract(tmp_path / "plain", views=1)
    with warnings.catch_warnings(action="error"):
        extract(tmp_path / "plain", images, views=1)


def test_larger_budget_adds_tokens_to_the_same_cache(tmp_path: Path) -> None:
    num_bytes = IMAGES * (2 + 4) * 16 * 2
    features = extract(tmp_path / "a", views=1, token_budget_gb=(num_bytes - 1) / 1e9)
    assert features.views == 0
    assert not list((tmp_path / "a").rglob("*tokens*"))
    with warnings.catch_warnings(action="error"):
        features = extract(tmp_path / "a", views=1, token_budget_gb=num_bytes / 1e9)
    assert features.views == 1
    extract(tmp_path / "b", views=1)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is no feature cache, it holds thesis\.tex; name a new or empty folder"):
        extract(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_small_disk_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both views have an index and 6 tokens of 16; the first has two vectors, too.
    needed = IMAGES * (2 * (8 + 6 * 16 * 2) + 2 * 16 * 2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 0, needed - 1))
    images = Noise()
    with pytest.raises(OSError, match=f"{tmp_path} needs {needed:,} bytes more and the disk has {needed - 1:,}"):
        extract(tmp_path, images)
    assert not images.opened
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 0, needed))
    extract(tmp_path, images)


def test_interrupted_write_leaves_no_partial_file(
    whole: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    arrays = ShardedArrays(whole, {}, {"x": Field("float32", (4,))}, 100, 50)
    arrays.write(0, 0, {"x": np.zeros((5, 4), "float32")})
    before = content(whole)
    message = f"cannot write 800 bytes to the feature cache in {whole}: File too large; make room and run again"
    with file_size_limit(500), pytest.raises(OSError, match=message):
        arrays.write(0, 1, {"x": np.zeros((50, 4), "float32")})
    assert changed(before, whole) == {"view0/00001.json"}  # that of the shard which was to be replaced
    assert arrays.missing(0, ["x"]) == [1]


def test_full_disk_is_one_error_line_and_the_cache_resumes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, room = Path.replace, iter(range(9))

    def replace_while_there_is_room(path: Path, target: Path) -> Path:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_while_there_is_room)
        with pytest.raises(OSError, match="No space left on device; make room") as error:
            extract(tmp_path / "full")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "full").rglob("*.tmp"))
    extract(tmp_path / "full")
    assert content(tmp_path / "full") == content(whole)


def test_lock_keeps_a_second_process_from_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave, order = threading.Event(), threading.Event(), []

    def waits(message: str, stacklevel: int) -> None:
        order.append(message)
        leave.set()

    def first() -> None:
        with ShardedArrays(tmp_path, {}, {"x": Field("int64")}, 1).only_writer():
            entered.set()
            leave.wait()
            order.append("first")

    thread = threading.Thread(target=first)  # flock sees two open files, whichever process has them
    thread.start()
    entered.wait()
    monkeypatch.setattr(warnings, "warn", waits)
    with ShardedArrays(tmp_path, {}, {"x": Field("int64")}, 1).only_writer():
        order.append("second")
    thread.join()
    assert order == [f"waiting for another process that fills the feature cache in {tmp_path}", "first", "second"]


def test_shards_are_as_large_as_their_largest_array_allows() -> None:
    def rows(*shape: int) -> int:
        return ShardedArrays(Path("unused"), {}, {"x": Field("float16", shape)}, 100_000).rows_per_shard

    assert rows(197, 768) == 2**27 // (197 * 768 * 2)
    assert rows(8) == 4096
    assert rows(2**15, 2**15) == 1


def _killed(folder: Path, at: int) -> None:
    """Extract until this many files are written, and kill the process during the next or before its renaming."""
    writes, original = 0, cache_module.replacing

    @contextmanager
    def replacing(path: Path, only_writer: bool) -> Iterator[Path]:
        nonlocal writes
        writes += 1
        with original(path, only_writer) as temporary:
            if writes > at and at % 2:
                temporary.write_bytes(b"half of it")
                kill_this_process()
            yield temporary
            if writes > at:
                kill_this_process()

    cache_module.replacing = replacing
    extract(folder)


def _kill_everywhere(root: Path) -> None:
    """Kill an extraction at each of its writes, in a new folder each time, and resume it."""
    backbone()  # which every child then has
    assert run_in_child(lambda: extract(root / "whole")) == 0
    for at in range(100):
        folder = root / f"{at:02d}"
        status = run_in_child(lambda: _killed(folder, at))  # noqa: B023  it is called here
        if status == 0:  # there are fewer writes
            shutil.rmtree(folder)
            return
        assert status == KILLED
        assert run_in_child(lambda: extract(folder)) == 0  # noqa: B023


if __name__ == "__main__":
    torch.set_num_threads(1)
    _kill_everywhere(Path(sys.argv[1]))
