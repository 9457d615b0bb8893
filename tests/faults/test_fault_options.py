"""Wrong options and config files: the error names the option, or the file and its line, and the remedy."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visionattn.cli.errors import describe
from visionattn.data import DataError, ImageClassificationData
from visionattn.tasks.classification import ClassificationTask

Run = Callable[..., Any]
Fails = Callable[..., str]
Quick = tuple[str, ...]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        pytest.param("--data.rot=x", "unknown option --data.rot; did you mean --data.root", id="near data"),
        pytest.param(
            "--trainr.devices=1", "unknown option --trainr.devices; did you mean --trainer.dev", id="near trainer"
        ),
        pytest.param("--task=classify", "unknown --task 'classify': choose one of classification, ", id="task"),
        pytest.param("--data.batch_size=1e9", "--data.batch_size: expected int. Got value: 1000000000.0", id="type"),
        pytest.param("--model.lr=many", "--model.lr: expected float or null. Got value: many", id="union"),
        pytest.param("--model.lr=nan", "--model.lr: expected float or null. Got value: nan", id="nan"),
        pytest.param("--model.model_kwargs=3", "--model.model_kwargs: expected dict[str, Any] or null", id="mapping"),
        pytest.param("--trainer.precision=33", "--trainer.precision: expected 64, 32, 16, ", id="precision"),
        pytest.param("--data.on_error=stop", "expected Literal['raise', 'skip']. Got value: stop", id="choice"),
        pytest.param("--seed_everything=-1", "--seed_everything must be at least 0 and at most 4294967295", id="seed"),
        pytest.param("--trainer.devices=0", "Trainer(devices=0)", id="devices"),
        pytest.param("--trainer.accelerator=gqu", "invalid accelerator name: `accelerator='gqu'`", id="accelerator"),
        pytest.param("--trainer.strategy=foo", "invalid strategy name: `strategy='foo'`", id="strategy"),
        pytest.param("--trainer.max_epochs=-5", "`max_epochs` must be a non-negative integer", id="epochs"),
        pytest.param("--trainer.limit_train_batches=1.5", "invalid value 1.5 for limit_train_batches", id="limit"),
        pytest.param(
            "--trainer.accumulate_grad_batches=0", "accumulate_grad_batches must be at least 1", id="accumulate"
        ),
        pytest.param("--trainer.check_val_every_n_epoch=0", "every_n_epoch must be at least 1", id="every epoch"),
        pytest.param("--trainer.val_check_interval=0", "val_check_interval must be greater than 0", id="interval"),
        pytest.param("--ema=2", "--ema must be at least 0 and at most 1, got 2.0", id="ema"),
        pytest.param("--run_name=a/../../b", "--run_name a/../../b leads out of --runs", id="run name"),
        pytest.param("--config=", "--config takes the name of a file", id="no config"),
        pytest.param("--config=absent.yaml", "no config file absent.yaml: --config takes a file", id="absent config"),
        pytest.param("--config=.", "path is not a file", id="folder config"),
    ],
)
def test_wrong_command_line_is_an_error(fails: Fails, quick: Quick, option: str, says: str) -> None:
    fails("fit", *quick, option, says=says, status=2)
    assert not list(Path("runs").glob("*/*"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["--model.name=nat_tinny"], "unknown model 'nat_tinny': did you mean nat_tiny", id="model"),
        pytest.param(
            ["--model.name=nat_pico.cifar100"],
            "unknown weights 'nat_pico.cifar100'; did you mean nat_pico.cifar10?",
            id="tag",
        ),
        pytest.param(["--model.model_kwargs={drop_pth: 1}"], "'test_resnet' takes no argument 'drop_pth'", id="kwargs"),
        pytest.param(
            ["--data.num_classes=3"], "'digits' has 10 classes, not 3: leave out --data.num_class", id="classes"
        ),
        pytest.param(
            ["--trainer.limit_train_batches=0"],
            "limit_train_batches 0 leaves nothing to train on: pass 1",
            id="nothing",
        ),
        pytest.param(["--data.val_split=dev"], "digits has no 'dev' split: leave out --data.val_split", id="split"),
        pytest.param(["--data.name=cifar"], "unknown data set 'cifar': digits, mnist, ", id="data set"),
    ],
)
def test_missing_file_or_name_is_an_error(fails: Fails, quick: Quick, options: list[str], says: str) -> None:
    fails("fit", *quick, *options, says=says)
    assert not list(Path("runs").glob("*/*"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"batch_size": -4}, "--data.batch_size must be at least 1, got -4", id="batch"),
        pytest.param({"num_workers": -1}, "--data.num_workers must be at least 0, got -1", id="workers"),
        pytest.param({"seed": -3}, "--data.seed must be at least 0 and at most 4294967295, got -3", id="data seed"),
        pytest.param({"in_chans": 0}, "--data.in_chans must be at least 1, got 0", id="channels"),
        pytest.param({"hflip": 2}, "--data.hflip must be at least 0 and at most 1, got 2", id="flips"),
        pytest.param(
            {"scale": (1, 0.5)}, "--data.scale must be two numbers above 0 and at most 1, the small", id="scale"
        ),
        pytest.param({"ratio": (0, 0)}, "--data.ratio must be two numbers above 0, the smaller first", id="ratio"),
        pytest.param({"mean": [123, 116, 103]}, "--data.mean must be at least 0 and at most 1, got 123", id="mean"),
        pytest.param({"std": [0, 0, 0]}, "--data.std must be greater than 0 and at most 1, got 0", id="std"),
        pytest.param({"std": [math.nan] * 3}, "--data.std must be greater than 0 and at most 1, got nan", id="nan"),
        pytest.param({"interpolation": "cubist"}, "--data.interpolation must be one of nearest, ", id="interpolation"),
        pytest.param({"crop_mode": "centre"}, "--data.crop_mode must be one of center, squash, border", id="crop"),
        pytest.param({"re_mode": "snow"}, "--data.re_mode must be one of const, rand, pixel", id="erasing"),
    ],
)
def test_invalid_data_option_is_an_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as error:
        ImageClassificationData(**options)
    assert describe(error.value).startswith(says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            {"lr": 1.0, "lr_base": 1.0}, "--model.lr 1.0 and --model.lr_base 1.0 exclude each other", id="lr twice"
        ),
        pytest.param({"lr": -1.0}, "--model.lr must be at least 0, got -1.0", id="lr"),
        pytest.param({"lr": math.nan}, "--model.lr must be at least 0, got nan", id="nan"),
        pytest.param({"drop_rate": 2}, "--model.drop_rate must be at least 0 and at most 1, got 2", id="dropout"),
        pytest.param({"warmup_epochs": -1}, "--model.warmup_epochs must be at least 0, got -1", id="warm-up"),
        pytest.param({"mixup": -1.0}, "--model.mixup must be at least 0, got -1.0", id="mixup"),
        pytest.param({"num_classes": 0}, "--model.num_classes must be at least 1, got 0", id="no classes"),
    ],
)
def test_invalid_model_option_is_an_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="--model") as error:
        ClassificationTask(**options)
    assert describe(error.value).startswith(says)


@pytest.mark.parametrize(
    ("option", "says", "status"),
    [
        pytest.param("--data.batch_size=0", "--data.batch_size must be at least 1, got 0", 1, id="batch"),
        pytest.param("--data.num_workers=-1", "--data.num_workers must be at least 0, got -1", 1, id="workers"),
        pytest.param("--data.img_size=0", "--data.img_size must be at least 1 and at most 16384, got 0", 1, id="size"),
        pytest.param("--data.crop_pct=0", "--data.crop_pct must be at least 0.05 and at most 2, got 0.0", 1, id="crop"),
        pytest.param("--data.split=dev", "digits has no 'dev' split", 1, id="split"),
        pytest.param(
            "--data=3", "--data takes a config file of options --data.NAME, and '3' is not one", 2, id="group"
        ),
        pytest.param("--precision=8", "--precision: expected Literal['32-true', ", 2, id="precision"),
    ],
)
def test_wrong_option_of_an_evaluation_is_an_error(
    fails: Fails, digits_checkpoint: Path, option: str, says: str, status: int
) -> None:
    fails("classify", "--device=cpu", f"--checkpoint={digits_checkpoint}", option, says=says, status=status)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("model:\n  name: [a\n  lr: 1\n", "c.yaml, line 3: expected ',' or ']', but got ':'", id="syntax"),
        pytest.param("model:\n  name: 'a\n", "c.yaml, line 3: found unexpected end of stream", id="open quote"),
        pytest.param("model:\n\tname: x\n", "c.yaml, line 2: a tab: indent with spaces", id="tab"),
        pytest.param(
            "data:\n  seed: 1\n  seed: 2\n", "c.yaml, line 3: seed is given once more, after line 2", id="twice"
        ),
        pytest.param(
            "data: {}\nmodel: {}\ndata: {}\n", "line 3: data is given once more, after line 1", id="section twice"
        ),
        pytest.param("", "c.yaml holds no settings", id="empty"),
        pytest.param("# nothing but words\n", "c.yaml holds no settings", id="comments"),
        pytest.param("- 1\n", "c.yaml holds no settings", id="list"),
        pytest.param("data:\n", "c.yaml holds no settings", id="empty section"),
        pytest.param("data: 3\n", "--data (c.yaml, line 1): expected options by name. Got value: 3", id="no section"),
        pytest.param(b"model:\n  name: \xc4rger\n", "c.yaml is not a text in UTF-8 (byte 15)", id="Latin-1"),
        pytest.param(b"\x00\x01", "c.yaml is not YAML: unacceptable character #x0000", id="binary"),
        pytest.param("model:\n  lr: many\n", "--model.lr (c.yaml, line 2): expected float or null", id="type"),
        pytest.param("model:\n  nam: x\n", "unknown key model.nam (c.yaml, line 2); did you mean model.name", id="key"),
        pytest.param("modl:\n  name: x\n", "unknown key modl.name (c.yaml, line 2)", id="section"),
    ],
)
def test_unreadable_config_is_an_error(fails: Fails, quick: Quick, text: str | bytes, says: str) -> None:
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    fails("fit", *quick, "--config=c.yaml", says=says, status=2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("data:\n  batch_size: x\n", "--data.batch_size (c.yaml, line 2): expected int", id="type"),
        pytest.param("chckpt: x\n", "unknown key chckpt (c.yaml, line 1); did you mean checkpoint?", id="key"),
        pytest.param("model: a\nmodel: b\n", "c.yaml, line 2: model is given once more, after line 1", id="twice"),
    ],
)
def test_wrong_config_of_an_evaluation_is_an_error(fails: Fails, text: str, says: str) -> None:
    Path("c.yaml").write_text(text)
    fails("classify", "--config=c.yaml", says=says, status=2)


def test_python_tag_in_a_config_is_not_run(fails: Fails, quick: Quick) -> None:
    Path("c.yaml").write_text("model: !!python/object/apply:os.mkdir [made]\n")
    fails("fit", *quick, "-c=c.yaml", says=("c.yaml, line 1: ", "objects of Python are not read"), status=2)
    assert not Path("made").exists()


def test_config_with_a_byte_order_mark_is_read(command: Run, quick: Quick) -> None:
    Path("c.yaml").write_text("trainer:\n  max_epochs: 1\n", encoding="utf-8-sig")
    assert command("fit", *quick, "--config=c.yaml", "--trainer.fast_dev_run=true").status == 0


def test_option_given_twice_has_the_last_value(fails: Fails, quick: Quick) -> None:
    fails("fit", *quick, "--model.name=nat_tinny", "--model.name=nat_smal", says="unknown model 'nat_smal'")


def test_run_of_zero_epochs_leaves_no_folder(command: Run, quick: Quick) -> None:
    ended = command("fit", *quick, "--trainer.max_epochs=0")
    assert ended.status == 0
    assert "0 epochs, 0 steps" in ended.out
    assert not list(Path("runs").glob("*/*"))


@pytest.mark.parametrize(
    "option",
    [
        pytest.param("--output={}/r.json", id="output"),
        pytest.param("--per-class={}/c.csv", id="per class"),
        pytest.param("--confusion-matrix={}/m.png", id="matrix"),
        pytest.param("--rollout={}/r", id="rollout"),
    ],
)
def test_unwritable_results_are_an_error_before_the_work(
    fails: Fails, digits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def work(*args: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("visionattn.evaluation.source.ModelSource.load", work)
    Path("file").write_text("")
    given = option.format("file")
    fails("classify", f"--checkpoint={digits_checkpoint}", given, says=f"cannot write {given.partition('=')[2]}: ")


@pytest.mark.parametrize(
    ("subcommand", "output", "says"),
    [
        pytest.param("predict", "file/p.csv", "cannot write file/p.csv: ", id="in a file"),
        pytest.param("predict", ".", ". is a folder: name a file in it", id="a folder"),
        pytest.param(
            "validate", "p.csv", "--output p.csv is for predict: --runs says where validate writes", id="others"
        ),
    ],
)
def test_unwritable_predictions_are_an_error_before_the_work(
    fails: Fails, subcommand: str, output: str, says: str
) -> None:
    Path("file").write_text("")
    # Checked before anything else.
    status = 1 if subcommand == "predict" else 2
    fails(subcommand, f"--output={output}", "--ckpt_path=absent.ckpt", says=says, status=status)


def test_unwritable_runs_folder_is_an_error(fails: Fails, quick: Quick) -> None:
    Path("file").write_text("")
    fails("fit", *quick, "--runs=file", says="cannot write file/test_resnet: Not a directory")
