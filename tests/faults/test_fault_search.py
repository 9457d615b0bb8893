"""Faults of visionattn embed and visionattn search; see README.md."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.processes import KILLED, kill_this_process, run_in_child
from visionattn.__main__ import dispatch
from visionattn.cli.errors import run
from visionattn.embedding import Index, search
from visionattn.embedding import files as embedding_files
from visionattn.embedding import nearest as search_backends
from visionattn.probing.frozen import FrozenBackbone

QUICK = ("--device", "cpu", "--num_workers", "0")
SEARCH = ("search", "val/red/0.jpg", "--gallery", "photos", "--index", "photos.idx")
NEW = (*SEARCH, "--model", "nat_pico.cifar10")


@pytest.fixture
def gallery(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work beside a folder `photos` with images of three colours."""
    monkeypatch.chdir(colour_folder)
    shutil.move("train", "photos")
    return Path("photos")


@pytest.fixture
def index(gallery: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Build the index of the folder."""
    assert run(dispatch, [*NEW, *QUICK]) == 0
    capsys.readouterr()
    return Path("photos.idx")


def error_of(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int = 1) -> str:
    """Run a command that fails, and return its line."""
    assert run(dispatch, [*words, *QUICK]) == status
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_gallery_without_images_is_an_error(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("photos")
    assert error_of(capsys, NEW) == "no such folder of images: photos (--gallery)"
    gallery.mkdir()
    assert error_of(capsys, NEW) == "no images under photos"
    (gallery / "a.jpg").write_bytes(b"no image")
    assert error_of(capsys, NEW) == "not one image could be read: photos/a.jpg: not an image that Pillow knows"
    assert not Path("photos.idx").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            ("--model", "vit_nano_patch4_32.cifar10"),
            "photos.idx was made with model nat_pico.cifar10, not vit_nano_patch4_32.cifar10: leave out --model",
            id="model",
        ),
        pytest.param(("--layer", "1"), "photos.idx was made with layer last, not 1: leave out --layer", id="layer"),
        pytest.param(("--img_size", "64"), "photos.idx was made with preprocessing input_size [3, 32, 32]", id="size"),
        pytest.param(
            ("--precision", "bf16-mixed"), "photos.idx was made with precision 32-true, not bf16", id="precision"
        ),
    ],
)
def test_index_of_other_features_is_an_error(
    options: tuple[str, ...], says: str, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = index.read_bytes()
    line = error_of(capsys, (*SEARCH, *options))
    assert line.startswith(says)
    assert line.endswith("or name another --index")
    assert index.read_bytes() == before


def test_index_of_another_pooling_is_an_error(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*SEARCH, "--model", "vit_nano_patch4_32.cifar10")
    assert run(dispatch, [*words, *QUICK]) == 0
    capsys.readouterr()
    line = error_of(capsys, (*words, "--pooling", "gap"))
    assert line.startswith(
        "photos.idx was made with pooling cls, not gap: leave out --pooling, or name another --index"
    )


def test_index_of_another_gallery_is_an_error(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = index.read_bytes()
    Path("others").mkdir()
    shutil.copy("val/red/0.jpg", "others/x.jpg")
    line = error_of(capsys, ("search", "val/red/0.jpg", "--gallery", "others", "--index", "photos.idx"))
    assert "and others has none of its images: name another --index for this gallery" in line
    assert index.read_bytes() == before


def test_query_that_cannot_be_read_is_an_error(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, ("search", "absent.jpg", "--index", "photos.idx")) == "no such image or folder: absent.jpg"
    Path("broken.jpg").write_bytes(b"no image")
    line = error_of(capsys, ("search", "broken.jpg", "--index", "photos.idx"))
    assert line == "not one image could be read: broken.jpg: not an image that Pillow knows"


def test_damaged_index_is_an_error(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.write_bytes(index.read_bytes()[:-50])
    line = error_of(capsys, SEARCH)
    assert line == "photos.idx is damaged, or no index of visionattn search: remove it and build it again"


@pytest.mark.parametrize("fault", ["length", "NaN", "type", "model", "size"])
def test_index_whose_parts_do_not_fit_is_an_error(fault: str, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Index.load(index)
    changed, about = found.features.clone(), dict(found.about)
    if fault == "length":
        changed = torch.nn.functional.normalize(changed[:, :7])
    elif fault == "NaN":
        changed[1, 2] = float("nan")
    elif fault == "type":
        changed = changed.half()
    else:
        about |= {"model": 3} if fault == "model" else {"preprocessing": {}}
    replace(found, features=changed, about=about).save(index)
    says = (
        "has vectors of other lengths than its model" if fault == "length" else "is damaged, or no index of visionattn"
    )
    assert error_of(capsys, SEARCH).startswith(f"photos.idx {says}")


def test_random_weights_are_not_searched_with(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, work in ((SEARCH, "search with"), (("embed", "photos", "--output", "f.npz"), "embed")):
        name = "vit_pico_patch4_32"
        words = (words[0], name, *words[1:]) if words[0] == "embed" else (*words, "--model", name)
        assert error_of(capsys, words).startswith(f"nothing to {work}, for the weights of {name} are random: ")
    assert sorted(path.name for path in Path().iterdir()) == ["photos", "val"]


def test_head_has_no_features_of_its_own(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, ["linear", "photos", "--model", "nat_pico.cifar10", "--output", "head", *QUICK]) == 0
    capsys.readouterr()
    line = error_of(capsys, ("embed", "head/head.json", "photos", "--output", "f.npz"))
    assert line == "head/head.json is a head on a frozen backbone: give the backbone, by its name or file"


def test_processes_that_make_one_index_wait_for_each_other(
    gallery: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = os.fork()
    if first == 0:
        status = 99
        try:
            forward = FrozenBackbone.forward
            monkeypatch.setattr(FrozenBackbone, "forward", lambda *args: (time.sleep(0.3), forward(*args))[1])
            status = run(dispatch, [*NEW, *QUICK, "--batch_size", "4"])
        finally:
            os._exit(status)
    while not Path("photos.idx.part/.lock").exists() and os.waitpid(first, os.WNOHANG) == (0, 0):
        pass
    with pytest.warns(UserWarning, match=r"waiting for another process that fills .*photos\.idx\.part"):
        search(Path("val"), gallery="photos", index="photos.idx", model="nat_pico.cifar10", device="cpu", num_workers=0)
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0
    assert len(Index.load("photos.idx")) == 12
    assert sorted(path.name for path in Path().iterdir()) == ["photos", "photos.idx", "val"]


def test_search_in_nothing_is_an_error(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, ("search", "val/red/0.jpg", "--index", "photos.idx"))
    assert line == "no such index: photos.idx; --gallery FOLDER --model NAME makes it"
    assert error_of(capsys, ("search", "val/red/0.jpg")).startswith("nothing to search in: give --gallery FOLDER")
    assert error_of(capsys, SEARCH) == "a new index needs a model: give --model NAME"


@pytest.mark.parametrize(
    ("words", "says", "status"),
    [
        pytest.param(("--topk", "0"), "--topk must be at least 1, got 0", 1, id="topk"),
        pytest.param(
            ("--output", "hits.txt"), "--output hits.txt: the formats are .csv, .json, .parquet", 1, id="ranks"
        ),
        pytest.param(("--sheet", "hits.csv"), "hits.csv would hold PNG: name it hits.png", 1, id="sheet"),
        pytest.param(("--pooling", "tokens"), "--pooling", 2, id="tokens"),
    ],
)
def test_wrong_option_of_search_is_an_error(
    words: tuple[str, ...], says: str, status: int, gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(capsys, (*NEW, *words), status).startswith(says)
    assert not Path("photos.idx").exists(), "before the work"


def test_features_in_an_unknown_format_are_an_error(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("embed", "nat_pico.cifar10", "photos")
    assert error_of(capsys, (*words, "--output", "f.csv")) == "f.csv: features are in .npz or .parquet files"
    assert error_of(capsys, words, 2) == "missing: --output FILE.npz or --output FILE.parquet"


def test_missing_packages_are_named_with_the_command(
    gallery: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (embedding_files, search_backends):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    line = error_of(capsys, ("embed", "nat_pico.cifar10", "photos", "--output", "f.parquet"))
    assert line.startswith('f.parquet needs pyarrow, which is not installed: pip install "visionattn[parquet]"')
    line = error_of(capsys, (*NEW, "--backend", "faiss"))
    assert line == '--backend faiss needs faiss, which is not installed: pip install "visionattn[search]"'


def test_killed_extension_leaves_the_old_index(
    index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = index.read_bytes()
    for number in range(3):
        shutil.copy("val/blue/0.jpg", f"photos/new{number}.jpg")

    def until_killed() -> int:
        monkeypatch.setattr(FrozenBackbone, "forward", lambda *_: kill_this_process())
        return run(dispatch, [*SEARCH, *QUICK])

    assert run_in_child(until_killed) == KILLED
    assert index.read_bytes() == before
    assert run(dispatch, [*SEARCH, *QUICK]) == 0
    assert "photos.idx: 15 images, 3 new, 0 changed, 0 removed" in capsys.readouterr().out
    assert len(Index.load(index)) == 15
    assert sorted(path.name for path in Path().iterdir()) == ["photos", "photos.idx", "val"]


def test_image_that_vanished_cannot_be_drawn(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("photos/red")
    words = ("search", "val/red/0.jpg", "--index", "photos.idx", "--output", "hits.csv", "--sheet", "hits.png")
    line = error_of(capsys, words)
    assert "photos/red/0.jpg: No such file or directory; --gallery FOLDER brings the index up to date" in line
    assert Path("hits.csv").exists(), "the ranks are written first"
