"""Options that a user may have meant: of that name in a group, so called in other tools, or spelt alike."""

from collections.abc import Iterable
from difflib import get_close_matches

from visionattn.suggestions import did_you_mean

ELSEWHERE = {
    "a": "model.name model models",
    "accum_iter": "accumulate_grad_batches",
    "amp": "precision",
    "arch": "model.name model models",
    "b": "batch_size",
    "bs": "batch_size",
    "checkpoint": "ckpt_path checkpoint_path",
    "ckpt": "ckpt_path checkpoint",
    "ckpt_path": "checkpoint",
    "clip_grad": "gradient_clip_val",
    "data": "root",
    "data_dir": "root",
    "data_path": "root",
    "data_root": "root",
    "data_set": "data.name",
    "dataset": "data.name",
    "device": "accelerator",
    "drop": "drop_rate",
    "drop_path": "drop_path_rate",
    "epochs": "max_epochs",
    "gpus": "devices device",
    "grad_accum_steps": "accumulate_grad_batches",
    "image_size": "img_size height",
    "initial_checkpoint": "checkpoint_path checkpoint",
    "input_size": "img_size height",
    "j": "num_workers",
    "learning_rate": "lr lrs",
    "lr": "lr lrs",
    "model": "model.name model models",
    "model_ema": "ema",
    "model_ema_decay": "ema",
    "model_name": "model.name model models",
    "num_epochs": "max_epochs epochs",
    "num_pictures": "num_examples",
    "optim": "opt optimizer",
    "optimizer": "opt",
    "out": "output runs",
    "output_dir": "runs output",
    "pictures": "examples num_examples",
    "resume": "ckpt_path checkpoint",
    "seed": "seed_everything",
    "val_batch_size": "eval_batch_size batch_size",
    "wd": "weight_decay",
    "workers": "num_workers",
}
"""Names of options in timm's, torchvision's and others' scripts, and their names here, the likeliest first."""


def meant_option(option: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean --a, --b?"`` for an unknown option, or ""; options have their dashes."""
    given = option.lstrip("-")
    names = {name[2:] for name in known if name.startswith("--") and not name.endswith("+")} - {given, "help"}
    group, _, word = given.rpartition(".")
    near = [group] if group in names and not any(name.startswith(f"{group}.") for name in names) else []
    for wanted in (*ELSEWHERE.get(word, "").split(), word):
        found = sorted(name for name in names if f".{name}".endswith(f".{wanted}"))
        near = near or get_close_matches(given, found, n=3, cutoff=0.0)
    near = near or get_close_matches(given, sorted(names), n=3)
    alike = get_close_matches(word, sorted({name.rpartition(".")[2] for name in names}), n=1)
    near = near or sorted(name for name in names if name.rpartition(".")[2] in alike)[:3]
    return did_you_mean(f"--{name}" for name in near)
