"""Options that a user may have meant: of that name in a group, so called in other tools, or of similar spelling."""

from collections.abc import Iterable
from difflib import get_close_matches

from visionattn.suggestions import did_you_mean

NAMES = {
    "accelerator devices": "device",
    "accumulate_grad_batches": "accum_iter grad_accum_steps",
    "auto_augment": "aa",
    "balance": "class_weights oversample sampler weighted_sampler",
    "batch_size": "b batch bs",
    "checkpoint": "ckpt_path",
    "checkpoint_path checkpoint": "initial_checkpoint pretrain_path",
    "ckpt_path checkpoint": "ckpt resume resume_interrupted",
    "ckpt_path checkpoint_path": "checkpoint",
    "compile": "torch_compile torchcompile",
    "data.name": "data_set dataset",
    "devices device": "gpus",
    "drop_path_rate": "drop_path",
    "drop_rate": "drop dropout",
    "early_stopping patience": "early_stop patience patience_epochs",
    "ema": "model_ema model_ema_decay",
    "eval_batch_size batch_size": "val_batch_size validation_batch_size vb",
    "examples num_examples": "pictures",
    "find_lr": "auto_lr_find lr_find",
    "gradient_clip_algorithm": "clip_mode",
    "gradient_clip_val": "clip_grad",
    "hflip": "fliplr",
    "img_size height": "image_size imgsz input_size",
    "instances": "num_instance num_instances",
    "labels": "annotations csv csv_file train_csv",
    "linear_probe": "freeze freeze_backbone",
    "log_every_n_steps": "log_interval",
    "logger": "log_wandb loggers report_to",
    "loss": "bce_loss",
    "lr lrs": "learning_rate lr lr0",
    "lr_base": "base_lr blr",
    "max_epochs": "epochs",
    "max_epochs epochs": "num_epochs",
    "max_steps": "steps",
    "mix_mode": "mixup_mode",
    "mix_prob": "mixup_prob",
    "mix_switch_prob": "mixup_switch_prob",
    "model.name model models": "a arch model model_name",
    "model_kwargs": "global_pool gp model_args",
    "num_examples": "num_pictures",
    "num_workers": "j workers",
    "opt": "optimizer",
    "opt optimizer": "optim",
    "opt_kwargs": "opt_betas opt_eps optim_args",
    "output runs": "out",
    "precision": "amp amp_dtype",
    "re_count": "recount",
    "re_mode": "remode",
    "re_prob": "erasing reprob",
    "root": "data data_dir data_path data_root",
    "run_name": "exp_name experiment",
    "runs": "project",
    "runs output": "output_dir",
    "save_top_k": "checkpoint_hist",
    "sched": "lr_scheduler scheduler",
    "seed_everything": "seed",
    "smoothing": "label_smoothing",
    "sync_batchnorm": "sync_bn",
    "task": "method",
    "val_labels": "val_csv",
    "vflip": "flipud",
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
