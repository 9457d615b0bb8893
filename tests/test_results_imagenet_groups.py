"""results/imagenet_groups.py: labels of wide groups for a folder of ImageNet images."""

from pathlib import Path

import pytest
from PIL import Image

from results.imagenet_groups import main
from results.pages import read_table


def write_image(path: Path) -> None:
    """Write an image of one colour, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def test_images_get_the_group_of_their_class(tmp_path: Path) -> None:
    known = {"n01440764": "fish", "n02085620": "dog", "n02123045": "other mammal", "n02669723": "artifact"}
    for folder in (*known, "n09193705", "own"):  # alps are in no group
        write_image(tmp_path / "images" / folder / "a.jpg")
    (tmp_path / "images" / "n01440764" / "notes.txt").write_text("no image")
    assert main(["--root", str(tmp_path / "images"), "--output", str(tmp_path / "groups.csv")]) == 0
    rows = read_table(tmp_path / "groups.csv")
    assert {row["path"]: row["label"] for row in rows} == {f"{name}/a.jpg": group for name, group in known.items()}


def test_folder_without_imagenet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--root", str(tmp_path), "--output", str(tmp_path / "groups.csv")])
    assert f"no images in folders such as {tmp_path / 'n01440764'}" in capsys.readouterr().err
    assert not (tmp_path / "groups.csv").exists()
