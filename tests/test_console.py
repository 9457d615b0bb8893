"""The command `visionattn`."""

import json
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest

from visionattn.__main__ import COMMANDS, GROUPS, dispatch, main
from visionattn.cli.errors import run
from visionattn.completion import create_parser


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_command(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, [option]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: visionattn COMMAND [options]"
    assert len(lines) <= 36, "one screen"
    assert [line.split()[0] for line in lines if line.startswith("  ") and "--" not in line] == list(COMMANDS)
    assert [line[:-1] for line in lines if line.endswith(":")] == [*GROUPS, "examples"]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, ["--version"]) == 0
    assert capsys.readouterr().out == f"visionattn {version('visionattn')}\n"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "a command is wanted: finetune, linear, fit, validate, test, predict, "),
        (["fti"], "unknown command 'fti'; did you mean fit?"),
        (["frobnicate"], "unknown command 'frobnicate'; choose from finetune, linear, fit, "),
        (["--config", "quickstart", "fit"], "--config stands before the command: write visionattn COMMAND --config"),
        (["fit", "--data.rot", "x"], "unknown option --data.rot; did you mean --data.root"),
        (["fit", "--model", "nat_tiny"], "--model takes a config file of options --model.NAME"),
        (["classify", "--lrr", "1"], "unknown option --lrr"),
        (["completion", "fish"], "visionattn completion takes one of bash, zsh, tcsh"),
        (["train", "--model.name", "x", "fit"], "--model.name stands before the command"),
        (["train", "--config", "quickstart", "fit"], "--config stands before the command: write fit --config"),
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
    "words",
    [
        ["fit"],
        ["classify"],
        ["predict", "MODEL", "IMAGES"],
        ["embed", "MODEL", "IMAGES"],
        ["search", "QUERY"],
        ["linear", "FOLDER"],
        ["train", "fit"],
        ["eval", "classify"],
        ["export", "hub"],
        ["export", "convert"],
    ],
    ids=" ".join,
)
def test_usage_of_a_command_equals_the_typed_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, [*(word for word in words if word.islower()), "--help"]) == 0
    usage = " ".join(capsys.readouterr().out.split())
    assert usage.lower().startswith(f"usage: visionattn {' '.join(words)}".lower())


def test_unknown_command_in_a_process_ends_with_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "visionattn", "nonsense"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: unknown command 'nonsense'; choose from {', '.join(COMMANDS)}\n"


def test_console_script_calls_main() -> None:
    (script,) = entry_points(group="console_scripts", name="visionattn")
    assert script.load() is main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option, start in (("-h", "usage: visionattn"), ("--version", f"visionattn {version('visionattn')}")):
        assert run(dispatch, [command, option]) == 0
        assert capsys.readouterr().out.startswith(start)


@pytest.mark.parametrize(("words", "evaluation"), [("fit", "classify"), ("train fit", "eval classify")])
def test_next_command_of_a_training_has_the_form_that_was_typed(
    words: str, evaluation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = "--model.name test_resnet --data.name digits --data.num_workers 0 --trainer.max_epochs 1"
    limits = "--trainer.limit_train_batches 1 --trainer.limit_val_batches 1 --trainer.accelerator cpu"
    assert run(dispatch, [*words.split(), *options.split(), *limits.split()]) == 0
    assert f"evaluate:  visionattn {evaluation} --checkpoint runs/" in capsys.readouterr().out
    summary = json.loads((tmp_path / "runs/test_resnet/0/summary.json").read_text())
    assert summary["command"].startswith(f"visionattn {words} --model.name")


def test_completion_without_shtab_names_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("visionattn.completion.find_spec", lambda name: None)
    assert run(dispatch, ["completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err


def test_completion_knows_commands_options_and_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert run(dispatch, ["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for word in (
        *COMMANDS,
        "--model.name",
        "--data.root",
        "--trainer.max_epochs",
        "--checkpoint",
        "onnx",
        "bf16-mixed",
    ):
        assert word == "completion" or word in script
    assert "--trainer.barebones" not in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_completion_parser_has_every_command() -> None:
    parser: Any = create_parser("visionattn", "FILES")
    commands = parser._subcommands_action.choices
    assert set(commands) == set(COMMANDS) - {"completion"}
    short = {"--model", "--checkpoint", "--epochs", "--lr", "--batch_size"}
    assert short <= {option for action in commands["finetune"]._actions for option in action.option_strings}
    options = {action.dest: action for action in commands["fit"]._actions}
    assert options["config"].complete == "FILES"
    words = [action for action in commands["predict"]._actions if not action.option_strings]
    assert [(action.dest, action.complete) for action in words] == [("model", "FILES"), ("images", "FILES")]
    assert "classification" in options["task"].choices
    assert options["model.pretrained"].choices == ["true", "false"]
