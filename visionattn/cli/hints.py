"""Which option a user may have meant: one of that name in a group, one that other tools call so, or one spelt alike."""

import difflib
from collections.abc import Iterable

from visionattn.suggestions import did_you_mean

ELSEWHERE = {
    "a": "model.name",
    "accum_iter": "accumulate_grad_batches",
    "amp": "precision",
    "arch": "model.name",
    "b": "batch_size",
    "clip_grad": "gradient_clip_val",
    "data": "root",
    "data_dir": "root",
    "data_path": "root",
    "data_root": "root",
    "data_set": "data.name",
    "dataset": "data.name",
    "drop": "drop_rate",
    "drop_path": "drop_path_rate",
    "epochs": "max_epochs",
    "gpus": "devices",
    "grad_accum_steps": "accumulate_grad_batches",
    "image_size": "img_size",
    "initial_checkpoint": "checkpoint_path",
    "input_size": "img_size",
    "j": "num_workers",
    "learning_rate": "lr",
    "model": "model.name",
    "model_ema": "ema",
    "model_ema_decay": "ema",
    "model_name": "model.name",
    "num_epochs": "max_epochs",
    "optim": "opt",
    "optimizer": "opt",
    "output_dir": "runs",
    "resume": "ckpt_path",
    "seed": "seed_everything",
    "val_batch_size": "eval_batch_size",
    "wd": "weight_decay",
    "workers": "num_workers",
}
"""Names of options in timm's, torchvision's and others' scripts, and what they are called here."""


def meant_option(option: str, known: Iterable[str]) -> str:
    """Ask for the option that was meant, as :func:`near_matches` does.

    Args:
        option: what was given, with its dashes.
        known: the options that there are.
    """
    names = {name[2:] for name in known if name.startswith("--") and not name.endswith("+")}
    given = option.lstrip("-")
    group, _, word = given.rpartition(".")
    if group in names and not any(name.startswith(f"{group}.") for name in names):
        return did_you_mean([f"--{group}"])  # of eval.py, whose --model is the name itself
    for wanted in filter(None, (ELSEWHERE.get(word), word)):
        found = [name for name in names if f".{name}".endswith(f".{wanted}") and name != given]
        found = found or [name for name in names if name == wanted.removesuffix(".name") != given]
        if found:
            break
    near = difflib.get_close_matches(given, sorted(found), n=3, cutoff=0.0) if found else []
    near = near or difflib.get_close_matches(given, sorted(names - {given, "help"}), n=3)
    return did_you_mean([f"--{name}" for name in near])
