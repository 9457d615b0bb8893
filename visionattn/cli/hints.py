"""Options that a user may have meant: of that name in a group, so called in other tools, or of similar spelling."""

from collections.abc import Iterable
from difflib import get_close_matches

from visionattn.suggestions import did_you_mean

NAMES = {
    "accelerator": "device",
    "accumulate_grad_batches": "accum_iter grad_accum_steps",
    "balance": "class_weights oversample sampler weighted_sampler",
    "batch_size": "b bs",
    "checkpoint": "ckpt_path",
    "checkpoint_path checkpoint": "initial_checkpoint",
    "ckpt_path checkpoint": "ckpt resume",
    "ckpt_path checkpoint_path": "checkpoint",
    "data.name": "data_set dataset",
    "devices device": "gpus",
    "drop_path_rate": "drop_path",
    "drop_rate": "drop",
    "ema": "model_ema model_ema_decay",
    "eval_batch_size batch_size": "val_batch_size",
    "examples num_examples": "pictures",
    "gradient_clip_val": "clip_grad",
    "img_size height": "image_size input_size",
    "labels": "annotations csv csv_file train_csv",
    "lr lrs": "learning_rate lr",
    "max_epochs": "epochs",
    "max_epochs epochs": "num_epochs",
    "model.name model models": "a arch model model_name",
    "num_examples": "num_pictures",
    "num_workers": "j workers",
    "opt": "optimizer",
    "opt optimizer": "optim",
    "output runs": "out",
    "precision": "amp",
    "root": "data data_dir data_path data_root",
    "runs output": "output_dir",
    "seed_everything": "seed",
    "val_labels": "val_csv",
    "weight_decay": "wd",
}
"""Names of options here, the likeliest first, and in timm's, torchvision's and others' scripts."""

ELSEWHERE = {word: here.split() for here, words in NAMES.items() for word in words.split()}


def meant_option(option: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean --a, --b?"`` for an unknown option, or ""; options have their dashes."""
    given = option.lstrip("-")
    names = {name[2:] for name in known if name.startswith("--") and not name.endswith("+")} - {given, "help"}
    group, _, word = given.rpartition(".")
    near = [group] if group in names and not any(name.startswith(f"{group}.") for name in names) else []
    for wanted in (*ELSEWHERE.get(word, ()), word):
        found = sorted(name for name in names if f".{name}".endswith(f".{wanted}"))
        near = near or get_close_matches(given, found, n=3, cutoff=0.0)
    near = near or get_close_matches(given, sorted(names), n=3)
    similar = get_close_matches(word, sorted({name.rpartition(".")[2] for name in names}), n=1)
    near = near or sorted(name for name in names if name.rpartition(".")[2] in similar)[:3]
    return did_you_mean(f"--{name}" for name in near)
