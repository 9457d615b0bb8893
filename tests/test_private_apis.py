"""Private names of argparse, jsonargparse, Lightning, timm, torch and torchvision that are used: each still exists.

Those of torch that ask for its state are in `tests/kernels/test_tracing.py`, those of Lightning's trainer in
`tests/training/test_lightning_internals.py`.
"""

import argparse
import inspect
from typing import Any

import jsonargparse
import pytest
import timm.optim._optim_factory
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torchvision.datasets import GTSRB, OxfordIIITPet

FOREACH = ["_foreach_add_", "_foreach_lerp_", "_foreach_mul_", "_foreach_sign"]
OF_PARSERS = ["_action_groups", "_actions", "_check_value_key", "_option_string_actions", "_subcommands_action"]


def parser_with_a_command() -> Any:
    parser = jsonargparse.ArgumentParser()
    parser.add_subcommands().add_subcommand("fit", jsonargparse.ArgumentParser(), help="train")
    return parser


@pytest.mark.parametrize(
    ("owner", "names", "users"),
    [
        pytest.param(timm.optim._optim_factory, ["default_registry"], "visionattn/training/kar3.py", id="timm.optim"),
        pytest.param(torch, FOREACH, "visionattn/training/kar3.py", id="foreach"),
        pytest.param(torch, ["_foreach_norm"], "visionattn/training/objective.py", id="foreach_norm"),
        pytest.param(
            torch.ops.aten, ["_softmax_backward_data"], "kernels/visionattn_kernels/attention/tiled.py", id="aten"
        ),
        pytest.param(
            torch.cpu,
            ["_is_amx_tile_supported", "_is_avx512_bf16_supported"],
            "visionattn/cli/trainer_options.py",
            id="cpu",
        ),
        pytest.param(LightningCLI, ["_run_subcommand"], "visionattn/cli/training.py", id="LightningCLI"),
        pytest.param(argparse, ["_HelpAction"], "visionattn/cli/parsing.py", id="argparse"),
        pytest.param(
            jsonargparse.DefaultHelpFormatter, ["_get_help_string"], "visionattn/cli/parsing.py", id="formatter"
        ),
        pytest.param(
            argparse.ArgumentParser().add_argument_group(), ["_group_actions"], "visionattn/cli/parsing.py", id="group"
        ),
        pytest.param(argparse.ArgumentParser(), ["_actions"], "visionattn/cli/parsing.py", id="argparse parser"),
        pytest.param(
            parser_with_a_command(),
            OF_PARSERS,
            "visionattn/cli/parsing.py, visionattn/cli/trainer_options.py or visionattn/completion.py",
            id="jsonargparse parser",
        ),
        pytest.param(LightningArgumentParser(), OF_PARSERS, "visionattn/cli/trainer_options.py", id="Lightning parser"),
        pytest.param(
            parser_with_a_command()._subcommands_action,
            ["_choices_actions", "choices"],
            "visionattn/cli/trainer_options.py",
            id="commands",
        ),
    ],
)
def test_private_names_exist(owner: object, names: list[str], users: str) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    assert missing == [], f"{owner} no longer has {', '.join(missing)}, used by {users}"


@pytest.mark.parametrize(
    ("dataset", "names"), [(GTSRB, ["_samples"]), (OxfordIIITPet, ["_images", "_labels", "_bin_labels"])]
)
def test_data_sets_of_torchvision_keep_their_files_in_private_lists(dataset: type, names: list[str]) -> None:
    source = inspect.getsource(dataset)
    missing = [name for name in names if f"self.{name} = " not in source]
    assert missing == [], f"{dataset} no longer has {missing}, used by visionattn/data/torchvision_sets.py"


def test_typehint_of_an_option_is_its_type() -> None:
    action: Any = jsonargparse.ArgumentParser().add_argument("--sizes", type=list[int] | None)
    users = "visionattn/cli/lists.py, visionattn/cli/parsing.py and visionattn/completion.py"
    assert getattr(action, "_typehint", None) == list[int] | None, f"options no longer have _typehint, used by {users}"


def test_registry_of_timm_registers_optimizers() -> None:
    registry = timm.optim._optim_factory.default_registry
    assert callable(registry.register), "the registry no longer has register, used by visionattn/training/kar3.py"
