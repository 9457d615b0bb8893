"""The command predict: what it prints, and the words of old command lines."""

import csv
import io
from pathlib import Path

import pytest

from visionattn.__main__ import dispatch
from visionattn.cli.errors import run

FAST = ["--device", "cpu", "--num_workers", "0"]


def test_table_of_few_images_and_summary_of_many(
    checkpoint: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red = colour_folder / "val" / "red"
    assert run(dispatch, ["predict", str(checkpoint), str(red / "0.jpg"), *FAST]) == 0
    out = capsys.readouterr().out
    assert out.startswith("images 32×32, crop 1 (center), bicubic, mean 0.5")
    assert all(word in out for word in ("probability", "red", "green", "blue"))
    assert run(dispatch, ["predict", str(checkpoint), str(red), "--topk", "1", *FAST]) == 0
    out = capsys.readouterr().out
    assert [f"{number}.jpg" in out for number in range(4)] == [True, True, True, False]
    assert run(dispatch, ["predict", str(checkpoint), *[str(colour_folder / "train")] * 2, str(red), *FAST]) == 0
    assert "0.jpg" in capsys.readouterr().out, "12 and 3 images, each once"
    many = [str(red / f"{number}.jpg") for number in range(3)]
    for copy in range(18):
        (red / f"copy{copy}.jpg").write_bytes((red / "0.jpg").read_bytes())
    assert run(dispatch, ["predict", str(checkpoint), str(red), *many, *FAST]) == 0
    out = capsys.readouterr().out
    assert "21 images" in out
    assert "0.jpg" not in out


def test_names_are_read_from_standard_input(
    checkpoint: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [colour_folder / "val" / name / "1.jpg" for name in ("red", "blue")]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{files[0]}\n\n{files[1]}\n"))
    output = tmp_path / "p.csv"
    assert run(dispatch, ["predict", str(checkpoint), "-", "--output", str(output), "--topk", "9", *FAST]) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert list(rows[0])[-2:] == ["probability_3", "error"], "as many as there are classes"


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        ("--ckpt_path x.ckpt --data.root photos --output p.csv", "predict x.ckpt photos --output p.csv"),
        ("--model.name nat_pico.cifar10 --model.pretrained --data.root photos", "predict nat_pico.cifar10 photos"),
        ("--model.name nat --model.checkpoint_path x.pth", "predict x.pth IMAGES --architecture nat"),
        ("--config quickstart", "predict MODEL IMAGES"),
    ],
)
def test_old_option_is_answered_with_the_words_to_type(
    words: str, instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dispatch, ["predict", *words.split()]) == 2
    option = words.split()[0]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {option} is an option of visionattn train predict, for several devices; ")
    assert line.endswith(f"here write visionattn {instead}")
