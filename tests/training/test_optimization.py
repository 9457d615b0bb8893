"""Options of optimizer and schedule: flat on the command line and in checkpoints, though a dataclass holds them."""

from dataclasses import fields

import pytest
from lightning.pytorch.cli import LightningArgumentParser

from visionattn.tasks import TASKS, ClassificationTask
from visionattn.training.optimization import Optimization

NAMES = [field.name for field in fields(Optimization)]


@pytest.mark.parametrize("kind", TASKS)
def test_options_are_flat_for_every_task(kind: str) -> None:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(TASKS[kind], "model")
    model = parser.parse_args(["--model.lr=0.5"]).model
    assert model.lr == 0.5
    assert [name for name in NAMES if name not in model] == []


def test_options_are_hyper_parameters_with_their_defaults() -> None:
    hparams = dict(ClassificationTask("test_resnet", lr=0.5).hparams)
    assert {name: hparams[name] for name in NAMES} == {name: getattr(Optimization(lr=0.5), name) for name in NAMES}
    assert (hparams["name"], hparams["smoothing"]) == ("test_resnet", 0.0)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        ClassificationTask("test_resnet", learning_rate=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1, "lr_base": 0.1}, "--model.lr 0.1 and --model.lr_base 0.1 exclude each other: pass one"),
        ({"warmup_epochs": -1}, "--model.warmup_epochs must be at least 0, got -1"),
        ({"bias_lr_factor": 0}, "--model.bias_lr_factor must be greater than 0, got 0"),
    ],
    ids=str,
)
def test_option_out_of_bounds_is_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimization(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "rate"), [({}, 1e-3), ({"lr": 0.0}, 0.0), ({"lr_base": 0.1}, 0.05)], ids=str)
def test_peak_rate_is_scaled_by_the_batch_for_lr_base_only(options: dict[str, float], rate: float) -> None:
    assert Optimization(**options).peak_rate(128) == rate  # type: ignore[arg-type]
