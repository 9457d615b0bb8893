"""--task: it is found before there is a parser, and one line adds a new kind of training."""

import importlib
import json
import re
from pathlib import Path
from typing import ClassVar

import pytest
from lightning.pytorch.cli import LightningCLI

from visionattn.cli.commands import EVALUATION_COMMANDS, KINDS, TRAINING_COMMANDS
from visionattn.cli.errors import UsageError, run
from visionattn.cli.evaluate import main as evaluate
from visionattn.cli.export import main as export
from visionattn.cli.kinds import find_task
from visionattn.cli.train import main
from visionattn.tasks import TASKS, ClassificationTask


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "fine.yaml": "task: fine_grained\nmodel:\n  name: test_vit\n",
        "plain.yaml": "model:\n  name: test_vit\n",
        "whole.yaml": "fit:\n  task: fine_grained\n",
        "broken.yaml": "task: [fine_grained\n",
        "list.yaml": "- task\n",
    }.items():
        Path(name).write_text(text)


@pytest.mark.parametrize(
    ("argv", "task"),
    [
        (["fit"], "classification"),
        (["fit", "--task", "reid"], "reid"),
        (["fit", "--task=mae"], "mae"),
        (["fit", "--task=fine_grained"], "fine_grained"),
        (["fit", "--config", "fine.yaml"], "fine_grained"),
        (["fit", "-c", "fine.yaml", "--config=plain.yaml"], "fine_grained"),
        (["--config=whole.yaml", "fit"], "fine_grained"),
        # The last one counts, as for all options.
        (["fit", "--config", "fine.yaml", "--task", "reid"], "reid"),
        (["fit", "--task", "reid", "--config", "fine.yaml"], "fine_grained"),
        # The parser reports errors in these later.
        (["fit", "--config", "absent.yaml"], "classification"),
        (["fit", "--config", "broken.yaml"], "classification"),
        (["fit", "--config", "list.yaml"], "classification"),
        (["fit", "--config"], "classification"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_task_named_last_counts(argv: list[str], task: str) -> None:
    assert find_task(argv) == task


@pytest.mark.parametrize("argv", [["fit", "--task", "detection"], ["fit", "--task"]], ids=" ".join)
def test_unknown_task_is_refused(argv: list[str]) -> None:
    with pytest.raises(
        UsageError, match=r"unknown --task '\w*': choose one of classification, fine_grained, reid, mae, object_d"
    ):
        find_task(argv)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["fit", "--task", "detection"], "unknown --task 'detection'"),
        (["fit", "--data.instances=4"], "(options of --task classification; there are also fine_grained, reid, mae, "),
        (["fit", "--task=reid", "--model.mixup=1"], "options of --task reid; there are also classification, fine_"),
        (["fit", "--config=broken.yaml"], "broken.yaml, line 2: expected ',' or ']'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_name_the_task(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--help"], "--task (classification, fine_grained, reid, mae, object_discovery, recall)"),
        (["fit", "--help"], "--task {classification,fine_grained,reid,mae,object_discovery,recall}"),
        (["fit", "--task=reid", "--help"], "--data.instances"),
        (["fit", "--task=mae", "--help"], "--model.mask_ratio"),
        (["fit", "--task=object_discovery", "--help"], "--model.num_slots"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_lists_tasks_and_their_options(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, argv) == 0
    assert says in " ".join(capsys.readouterr().out.split())


class ToyTask(ClassificationTask):
    """A kind of training that the package does not know."""

    kind: ClassVar[str] = "toy"
    monitor: ClassVar[str] = "val_top5"
    shown: ClassVar[tuple[str, ...]] = ("val_top5",)
    help_text: ClassVar[str] = "toys"
    card_text: ClassVar[str] = "a toy"


def test_lists_that_import_nothing_are_complete() -> None:
    assert list(KINDS) == list(TASKS)
    assert list(TRAINING_COMMANDS) == list(LightningCLI.subcommands())
    for name in EVALUATION_COMMANDS:
        module = importlib.import_module(f"visionattn.cli.{name.replace('-', '_')}")
        assert callable(getattr(module, name.replace("-", "_")))


def test_new_kind_needs_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(TASKS, ToyTask.kind, ToyTask)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    options = ["--task=toy", "--model.name=test_resnet", "--data.img_size=32", "--data.num_workers=0"]
    options += ["--trainer.accelerator=cpu", "--trainer.limit_train_batches=1", "--trainer.enable_progress_bar=false"]
    assert run(main, ["fit", *options, "--trainer.max_epochs=1", "--run_name=toy"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^epoch 1/1, step 1, train_loss [\d.]+, val_top5 [\d.]+, \d+ s$", out, re.MULTILINE)
    assert re.search(r"^best val top-5 [\d.]+%", out, re.MULTILINE)
    assert "evaluate:  python eval.py classify --checkpoint" in out
    summary = json.loads(Path("runs/toy/0/summary.json").read_text())
    assert (summary["task"], list(summary["best"])) == ("toy", ["val_top5"])

    checkpoint = "runs/toy/0/checkpoints/best.ckpt"
    assert run(main, ["validate", *options, f"--ckpt_path={checkpoint}"]) == 0
    assert run(evaluate, ["classify", f"--checkpoint={checkpoint}", "--device=cpu", "--data.num_workers=0"]) == 0
    assert run(export, ["hub", f"--checkpoint={checkpoint}", "--output=exported"]) == 0
    assert "This is a toy." in Path("exported/README.md").read_text()
    assert run(main, ["fit", "--help"]) == 0
    assert "classification,fine_grained,reid,mae,object_discovery,recall,toy" in capsys.readouterr().out


def test_kinds_are_listed_without_the_tasks() -> None:
    assert tuple(TASKS) == KINDS


@pytest.mark.parametrize("config", [["-c", "whole.yaml"], ["--config=whole.yaml"]], ids=" ".join)
def test_config_may_stand_before_the_command(config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [*config, "fit", "--print_config"]) == 0
    assert "seed_everything: 0" in capsys.readouterr().out
