"""Options of optimizer and schedule: flat on the command line and in checkpoints, though a dataclass holds them."""

import copy
from dataclasses import fields

import pytest
import timm
import torch
from lightning.pytorch.cli import LightningArgumentParser

from visionattn.tasks import TASKS, ClassificationTask
from visionattn.training.optimization import Optimization, create_optimizer

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


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
def test_torch_updates_in_one_operator_on_cpus(opt: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    other, start = copy.deepcopy(model), copy.deepcopy(model)
    optimizers = [create_optimizer(net, Optimization(opt=opt), 0.01, [torch.nn.Linear(2, 2)]) for net in (model, other)]
    for group in optimizers[1].param_groups:
        assert group["fused"]
        group["fused"] = None
    for _ in range(3):
        gradients = [torch.randn_like(parameter) for parameter in model.parameters()]
        for net, optimizer in zip((model, other), optimizers, strict=True):
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    pairs = zip(model.parameters(), other.parameters(), start.parameters(), strict=True)
    assert all((a - b).norm() <= 1e-4 * (a - c).norm() for a, b, c in pairs)


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
@pytest.mark.parametrize("resumed", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_run_resumes_in_another_memory_format(opt: str, resumed: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3)
    gradients = torch.randn(4, *model.weight.shape)
    found = []
    for layouts in ([torch.contiguous_format] * 2, [torch.channels_last, resumed], [torch.contiguous_format, resumed]):
        net, state = copy.deepcopy(model), None
        for layout, gradient in zip(layouts, gradients.split(2), strict=True):
            net.to(memory_format=layout)
            optimizer = create_optimizer(net, Optimization(opt=opt), 0.01)
            if state is not None:
                optimizer.load_state_dict(state)
            for each in gradient:
                net.weight.grad = each.contiguous(memory_format=layout)
                optimizer.step()
            state = copy.deepcopy(optimizer.state_dict())
        found.append(net.weight)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_other_optimizers_and_a_choice_of_the_user_stay() -> None:
    model = torch.nn.Linear(2, 2)
    assert "fused" not in create_optimizer(model, Optimization(opt="lamb"), 0.01).param_groups[0]
    chosen = Optimization(opt_kwargs={"foreach": True})
    assert not create_optimizer(model, chosen, 0.01).param_groups[0]["fused"]
