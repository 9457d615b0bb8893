"""Choice of the images among files of a folder or an archive, by all readers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from visionattn.data import DataError
from visionattn.data.finding import Finder, image_extensions, natural_key
from visionattn.data.folders import class_name

HIDDEN = ["._0.png", ".ipynb_checkpoints/0-checkpoint.png", "a/@eaDir/0.png", "__MACOSX/a/._0.png", "a/Thumbs.db"]
OTHERS = ["a/notes.txt", "a/0.heic", "README", "a/1.pdf", "a/2.eps"]


def test_extensions_match_formats_that_pillow_decodes() -> None:
    read = {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".tif", ".tiff", ".webp"}
    assert read <= image_extensions()
    assert not image_extensions() & {"", ".pdf", ".eps", ".h5", ".mpg", ".wmf", ".txt"}


@pytest.mark.slow
def test_common_formats_are_tried_first() -> None:
    code = "from visionattn.data.finding import image_extensions as x; x(); from PIL import Image; print(*Image.ID[:6])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"JPEG", "PNG"} <= set(found)


def test_import_leaves_the_extensions_of_timm_alone() -> None:
    assert set(get_img_extensions()) == {".png", ".jpg", ".jpeg"}


@pytest.mark.parametrize("path", ["0.png", "a/0.JPG", "./a/0.jpe", "../a/0.jfif", "/a/b/0.webp", "macosx/thumbs.png"])
def test_image_is_taken(path: str) -> None:
    assert Finder(Path("x")).is_image(path)


@pytest.mark.parametrize("path", HIDDEN + OTHERS)
def test_hidden_system_or_other_file_is_passed_over(path: str) -> None:
    assert not Finder(Path("x")).is_image(path)


def test_skipped_files_are_counted_in_one_warning(tmp_path: Path) -> None:
    for name in ["a/0.png", "b/x.jpg/1.png", *HIDDEN, *OTHERS, "a/3.txt", "a/meta.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    finder = Finder(tmp_path, companions=(".json",))
    assert [images for _, _, images in finder.walk() if images] == [["0.png"], ["1.png"]]
    with pytest.warns(UserWarning, match="passed over") as warned:
        finder.report()
    assert [str(warning.message) for warning in warned] == [
        f"{tmp_path}: passed over hidden or system files and folders: 5 (._0.png, .ipynb_checkpoints, __MACOSX, …); "
        "files that are not images Pillow reads: 6 (.txt, .eps, .heic, …)"
    ]


@pytest.mark.filterwarnings("error")
def test_place_of_images_alone_needs_no_warning(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    finder = Finder(tmp_path)
    assert list(finder.walk()) == [(str(tmp_path), [], ["0.png"])]
    finder.report()


def test_folder_that_must_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, as root may read everything. A walk skips such folders."""
    locked, scan = tmp_path / "a" / "b", os.scandir
    locked.mkdir(parents=True)

    def guarded(path: str) -> object:
        if path == str(locked):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match=f"no permission to read {locked}: grant it"):
        list(Finder(tmp_path).walk())


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    assert sorted(["b10", "b9", "B1", "1²", "a"], key=natural_key) == ["1²", "a", "B1", "b9", "b10"]


def test_class_has_one_name_in_text() -> None:
    assert class_name("Ka\u0308se") == class_name("K\u00e4se") == "K\u00e4se"
    assert class_name("caf\udce9") == r"caf\xe9"
