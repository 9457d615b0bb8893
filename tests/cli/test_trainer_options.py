"""Options, callbacks and plugins of Lightning: if they have no effect, they are refused with the option that has."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)

from visionattn.cli.commands import TRAINING_COMMANDS
from visionattn.cli.errors import UsageError, run
from visionattn.cli.hints import meant_option
from visionattn.cli.train import main
from visionattn.cli.trainer_options import (
    COMMON,
    FIT_ONLY,
    OPTIONS,
    check_callbacks,
    check_plugins,
    check_trainer_options,
    default_precision,
)
from visionattn.training.callbacks import Stopwatch
from visionattn.words import counted

DEFAULTS: dict[str, Any] = {**dict.fromkeys(OPTIONS), "callbacks": None, "min_epochs": None, "max_epochs": 30}
QUICK = [
    "--model.name=test_resnet",
    "--data.batch_size=8",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.accelerator=cpu",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.max_epochs=1",
]


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"default_root_dir": "x"}, "--trainer.default_root_dir x does not go with train.py: name the folder of all"),
        ({"overfit_batches": 2}, "--data.limit_per_class"),
        ({"barebones": True}, "leave it out"),
        ({"use_distributed_sampler": True}, "leave it out"),
        ({"model_registry": "x"}, "visionattn export hub"),
        ({"min_epochs": 31}, "--trainer.min_epochs 31 is more than --trainer.max_epochs 30"),
        ({"callbacks": Namespace(class_path="lightning.pytorch.callbacks.Timer")}, "--trainer.max_time"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_trainer_option_without_effect_is_refused(options: dict[str, Any], remedy: str) -> None:
    check_trainer_options(Namespace(**DEFAULTS))
    with pytest.raises(UsageError) as error:
        check_trainer_options(Namespace(**{**DEFAULTS, **options}))
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ("callback", "remedy"),
    [
        (StochasticWeightAveraging(1e-3), "StochasticWeightAveraging averages weights after the last checkpoint"),
        (LearningRateFinder(), "--find_lr true"),
        (BatchSizeFinder(), "--data.batch_size"),
        (GradientAccumulationScheduler({0: 2}), "--trainer.accumulate_grad_batches"),
        (ModelPruning("l1_unstructured"), "leave it out"),
        (BackboneFinetuning(), "--model.linear_probe"),
        (EMAWeightAveraging(), "so does --ema"),
        (Stopwatch(), "part of train.py already"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_callback_that_does_not_fit_a_run_is_refused(callback: Any, remedy: str) -> None:
    check_callbacks([EarlyStopping("val_loss")], averaging=True)
    with pytest.raises(UsageError) as error:
        check_callbacks([callback], averaging=True)
    assert remedy in str(error.value)


def test_plugin_that_writes_checkpoints_is_refused() -> None:
    with pytest.raises(UsageError, match=r"TorchCheckpointIO .* leave it out"):
        check_plugins([TorchCheckpointIO()])


def test_run_without_checkpoints_takes_a_callback_and_a_profiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.enable_checkpointing=false", "--trainer.profiler=simple", "--trainer.val_check_interval=0.5"]
    assert run(main, ["fit", *QUICK, *options, "--trainer.callbacks=LearningRateMonitor"]) == 0
    folder = Path("runs/test_resnet/0")
    assert not (folder / "checkpoints").exists()
    assert "run_training_epoch" in (folder / "fit-profile.txt").read_text()
    assert (folder / "metrics.csv").exists()
    assert "1 epoch, 2 steps in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("val_check_interval=0.5", "0.5"),
        ("val_check_interval=3", "3"),
        ("val_check_interval=00:05:00:00", "00:05:00:00"),
        ("val_check_interval={minutes: 5}", "minutes: 5"),
        ("max_time=1 day, 0:05:00", "1 day, 0:05:00"),
        ("strategy=DDPStrategy", "class_path: lightning.pytorch.strategies.DDPStrategy"),
        ("devices=[0, 1]", "- 0\n  - 1"),
    ],
)
@pytest.mark.slow
def test_every_type_of_a_union_parses(given: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["fit", f"--trainer.{given}", "--print_config"]) == 0
    written = capsys.readouterr().out
    assert f"{given.partition('=')[0]}: {value}\n" in written.replace(":\n    ", ": ").replace(":\n  ", ": ")


KNOWN = ["--model", "--model.name", "--model.lr", "--trainer.max_epochs", "--data", "--data.root", "--data.batch_size"]


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--lr", "--model.lr"),
        ("--trainer.lr", "--model.lr"),
        ("--epochs", "--trainer.max_epochs"),
        ("-b", "--data.batch_size"),
        ("--data_dir", "--data.root"),
        ("--model", "--model.name"),
        ("--arch", "--model.name"),
        ("--data.rot", "--data.root"),
        ("--lrr", "--model.lr"),
    ],
)
def test_hint_names_the_option_for_names_of_other_tools(option: str, meant: str) -> None:
    assert meant_option(option, [*KNOWN, "--help", "-c"]).startswith(f"; did you mean {meant}")


@pytest.mark.parametrize(
    ("option", "known", "meant"),
    [
        ("--pictures", ["--examples", "--num_examples"], "--examples"),
        ("--pictures", ["--num_examples"], "--num_examples"),
        ("--num_pictures", ["--examples", "--num_examples"], "--num_examples"),
        ("--lr", ["--training.lrs", "--training"], "--training.lrs"),
        ("--epochs", ["--training.epochs"], "--training.epochs"),
        ("--arch", ["--models"], "--models"),
        ("--ckpt_path", ["--checkpoint"], "--checkpoint"),
    ],
)
def test_hint_of_an_evaluation_names_its_option(option: str, known: list[str], meant: str) -> None:
    assert meant_option(option, known) == f"; did you mean {meant}?"


def test_hint_ignores_options_that_differ_in_dashes_only() -> None:
    assert meant_option("--lr", ["--help", "--logger"]) == ""
    assert meant_option("--model.name", ["--model", "--data.name"]) == "; did you mean --model?"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--model", "nat_tiny"], "--model takes a config file of options --model.NAME, and 'nat_tiny' is not one"),
        (["--model", "nat_tiny"], "did you mean --model.name?"),
        (["--lr", "0.1"], "unknown option --lr; did you mean --model.lr?"),
    ],
)
def test_misspelt_option_names_the_right_one(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["fit", *argv]) == 2
    assert says in capsys.readouterr().err


def test_help_of_commands_is_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--help"]) == 0
    assert "test                Measure a model on the test split.\n" in capsys.readouterr().out


def test_short_help_is_one_screen_of_the_most_used_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["fit", "-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 28
    assert lines[-1] == "--help lists all options."
    text = "\n".join(lines)
    assert all(f"--{name}" in text for name in set(COMMON) - {"output"})
    assert "--output" not in text, "it is for predict"


def test_help_is_ordered_by_model_data_run_and_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(\w+)\b.*:$", text, re.MULTILINE) == ["most", "model", "data", "run", "trainer"]
    options = re.findall(r"^  (?:-c CONFIG, |-h, )?--([\w.]+)", text, re.MULTILINE)
    assert len(options) == len(set(options)), "each once"
    assert options[: len(COMMON) - 1] == [name for name in COMMON if name != "output"]


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_help_offers_no_option_that_is_refused_or_without_effect(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, [command, "--help"]) == 0
    text = capsys.readouterr().out
    hidden = {f"trainer.{name}" for name in OPTIONS} | (FIT_ONLY if command != "fit" else set())
    hidden |= {"output"} if command != "predict" else set()
    assert [name for name in hidden if re.search(rf"--{re.escape(name)}\b(?!\.)", text)] == []
    assert not re.search(r"hpc|registry", re.sub(r"\s+", " ", text))


@pytest.mark.parametrize("argv", [["--version"], ["fit", "--version"]], ids=" ".join)
def test_every_command_has_a_version(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, argv) == 0
    assert capsys.readouterr().out.startswith("visionattn 0.")


def test_counts_agree_with_their_nouns() -> None:
    assert [counted(1, "epoch"), counted(2000, "epoch"), counted(0, "query", "queries")] == [
        "1 epoch",
        "2,000 epochs",
        "0 queries",
    ]


@pytest.mark.parametrize(
    ("accelerator", "gpu", "gpu_has_it", "cpu_has_it", "expected"),
    [
        ("auto", True, True, False, "bf16-mixed"),
        ("auto", True, False, True, "32-true"),
        ("cpu", True, True, False, "32-true"),
        ("cpu", False, False, True, "bf16-mixed"),
        ("auto", False, False, True, "bf16-mixed"),
        ("auto", False, False, False, "32-true"),
    ],
)
def test_precision_is_bfloat16_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, gpu: bool, gpu_has_it: bool, cpu_has_it: bool, expected: str
) -> None:
    for owner in (torch.accelerator, torch.cuda):
        monkeypatch.setattr(owner, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_has_it)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_has_it)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert default_precision(accelerator) == expected
    assert default_precision(accelerator, trains=False) == (
        "bf16-mixed" if expected != "32-true" and gpu else "32-true"
    )
