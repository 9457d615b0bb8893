"""Commands that a training prints, in the form in which the user started it."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from visionattn.data.own_transform import KEY
from visionattn.data.sources import find_split


def shell_command(prog: str, words: Iterable[str]) -> str:
    """Return a line for a shell: a program, such as ``train.py`` or ``visionattn train``, and what follows it."""
    return shlex.join([*(["python", prog] if prog.endswith(".py") else prog.split()), *words])


def resume_command(prog: str, argv: Iterable[str], checkpoint: Path) -> str:
    """Return the command line of a training with ``--ckpt_path`` of its newest checkpoint."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--ckpt_path":
            next(words, None)
        elif not word.startswith("--ckpt_path="):
            kept.append(word)
    return shell_command(prog, [*kept, "--ckpt_path", str(checkpoint)])


def next_command(prog: str, task: Any, data: Any, checkpoint: Path) -> str:
    """Return lines with the commands that evaluate a checkpoint and predict, or test or fine-tune it.

    The trained LightningModule ``task`` and its DataModule ``data`` say what follows; ``prog`` trained them.
    """
    if task.eval_command == "test":
        words = ["test", "--config", str(checkpoint.parent.with_name("config.yaml")), "--ckpt_path", str(checkpoint)]
        return f"test:      {shell_command(prog, words)}"
    where = {"data.name": data.name, "data.root": data.root}
    if (tables := getattr(data, "tables", None)) is not None:
        where |= {f"data.{option}": value for option, value in tables.reading("validation").items()}
    if task.eval_command:
        class_map = getattr(data, "class_map", None)
        where |= {"data.split": data.splits["validation"], "data.camera": getattr(data, "camera", None)}
        where |= {"data.class_map": _as_json(class_map), "data.transform": data.preprocessing.get(KEY)}
        if getattr(data, "divides_itself", False):
            where |= {f"data.{option}": getattr(data, option, None) for option in ("val_share", "holdout_per_class")}
            if tables is None and (own := data.splits["train"]) is not None:
                where["data.root"] = find_split(Path(data.root), "train", own)
        words = [task.eval_command, "--checkpoint", str(checkpoint), *_given(where)]
        lines = [f"evaluate:  {shell_command(prog.replace('train', 'eval'), words)}"]
        if task.eval_command == "classify" and prog == "visionattn":
            lines.append(f"predict:   {shell_command(prog, ['predict', str(checkpoint), 'IMAGES'])}")
        return "\n".join(lines)
    _, height, width = data.preprocessing["input_size"]
    where |= {"data.img_size": height if height == width else [height, width], "model.checkpoint_path": checkpoint}
    where |= {"model.model_kwargs": _as_json(task.spec.model_kwargs)}
    return f"fine-tune: {shell_command(prog, ['fit', '--model.name', task.spec.model, *_given(where)])}"


def _given(options: Mapping[str, Any]) -> list[str]:
    """Return options that are not at their defaults as words of a command line."""
    given = {key: value for key, value in options.items() if value not in (None, "")}
    texts = {key: str(value) if isinstance(value, str | Path) else json.dumps(value) for key, value in given.items()}
    return [word for key, text in texts.items() for word in (f"--{key}", text)]


def _as_json(values: Any) -> str | None:
    return json.dumps(values, ensure_ascii=False) if values else None
