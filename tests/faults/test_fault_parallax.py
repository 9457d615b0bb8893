"""Options and files that do not fit the mixers parallax and local_linear."""

from collections.abc import Callable
from pathlib import Path

import timm
from safetensors.torch import save_file

import visionattn  # noqa: F401 - registers the models

Fails = Callable[..., str]

CLASSIFY = ("classify", "--model=nat_pico.cifar10", "--pretrained")


def test_no_steps_are_an_error(colour_folder: Path, fails: Fails) -> None:
    kwargs = "--model_kwargs={mixer: local_linear, mixer_kwargs: {steps: 0}}"
    says = "model 'nat_pico.cifar10': steps must be at least 1; got 0"
    fails(*CLASSIFY, kwargs, f"--data.root={colour_folder}", says=says)


def test_file_with_r_in_some_blocks_alone_is_an_error(colour_folder: Path, fails: Fails) -> None:
    weights = timm.create_model("nat_pico", num_classes=10, mixer="parallax").state_dict()
    del weights["levels.1.blocks.0.attn.r.bias"]
    save_file(weights, "cut.safetensors")
    kwargs = "--model_kwargs={mixer: parallax, pretrained_cfg_overlay: {file: cut.safetensors}}"
    says = "does not fit nat_pico: 1 key missing in the file: levels.1.blocks.0.attn.r.bias"
    fails(*CLASSIFY, kwargs, f"--data.root={colour_folder}", says=says)


def test_weights_of_another_mixer_are_an_error(colour_folder: Path, fails: Fails) -> None:
    says = "7 keys missing in the file: levels.0.blocks.0.attn.ridge"
    fails(*CLASSIFY, "--model_kwargs={mixer: local_linear}", f"--data.root={colour_folder}", says=says)
