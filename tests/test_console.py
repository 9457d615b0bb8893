"""The command `visionattn`."""

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from visionattn.__main__ import COMMANDS, dispatch, main
from visionattn.cli.errors import run


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_command(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, [option]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: visionattn COMMAND ..."
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, ["--version"]) == 0
    assert capsys.readouterr().out == f"visionattn {version('visionattn')}\n"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "a command is wanted: train, eval, export"),
        (["trein", "fit"], "unknown command 'trein'; did you mean train?"),
        (["frobnicate"], "unknown command 'frobnicate'; choose from train, eval, export"),
        (["--verbose"], "unknown command '--verbose'; choose from train, eval, export"),
        (["eval", "clasifi"], "unknown command 'clasifi'; did you mean classify?"),
        (["export", "onxx"], "unknown command 'onxx'; did you mean onnx?"),
        (["train", "fit", "--data.rot", "x"], "unknown option --data.rot; did you mean --data.root"),
        (["export", "hub"], "missing: --output"),
        (["export", "convert", "in.pth"], "the following arguments are required: OUT, --arch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_with_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {says}")


@pytest.mark.parametrize(
    "words", [["train", "fit"], ["eval", "classify"], ["export", "hub"], ["export", "convert"]], ids=" ".join
)
def test_help_of_a_command_tells_how_it_was_called(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, [*words, "--help"]) == 0
    usage = " ".join(capsys.readouterr().out.split())
    assert usage.lower().startswith(f"usage: visionattn {words[0]}")


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "visionattn", "nonsense"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command 'nonsense'; choose from train, eval, export\n"


def test_the_script_is_this() -> None:
    (script,) = entry_points(group="console_scripts", name="visionattn")
    assert script.load() is main


def test_a_training_tells_the_next_command_as_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "train fit --model.name test_resnet --data.name digits --data.num_workers 0 --trainer.max_epochs 1"
    limits = "--trainer.limit_train_batches 1 --trainer.limit_val_batches 1 --trainer.accelerator cpu"
    assert run(dispatch, [*words.split(), *limits.split()]) == 0
    assert "evaluate:  visionattn eval classify --checkpoint runs/" in capsys.readouterr().out
