"""Speed, size and memory of a list of models."""

import fnmatch
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint

from visionattn.cli.errors import one_line
from visionattn.cli.measure import Conditions, measure
from visionattn.cli.progress import show_progress
from visionattn.cli.report import check_writable, print_table, write_csv, write_json
from visionattn.cli.zoo import read_results, write_zoo
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.tasks.checkpoint import check_model_name
from visionattn_kernels.provenance import provenance


def throughput(
    models: str,
    img_size: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: Precision = "32-true",
    train: bool = False,
    channels_last: bool = False,
    seconds: float = 5.0,
    model_kwargs: dict[str, Any] | None = None,
    output: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
    beside: Path | None = None,
    resume: bool = False,
) -> None:
    """Measure images/s, parameters, GMACs and peak memory of models.

    Each model has a process of its own, so that no model inherits another's memory, and so that one that fails or is
    killed does not lose the others. Inputs are random. Multiply-accumulates are those of matrix products, convolutions
    and attention, for one image. Peak memory is what the allocator handed out at most on a GPU; on a CPU, how far
    the process's resident set rose at most above where it stood before the model was made, which includes what torch
    loads and keeps for itself on first use.

    Args:
        models: names or patterns, separated by commas: nat_tiny,resnet50,dinat_*; module:PACKAGE stands for all models
            that a package registers, as in module:visionattn.
        img_size: height and width of the input, by default each model's own.
        batch_size: images per step.
        device: auto, cpu, cuda, cuda:1, …
        precision: as --trainer.precision.
        train: time forward, backward and an AdamW step instead of the forward pass alone.
        channels_last: lay tensors out in channels-last memory format.
        seconds: time to spend on the timed runs of each model, of which there are at least five.
        model_kwargs: further arguments for each model, such as {"num_classes": 10}.
        output: JSON file for the results.
        csv: CSV file for the table.
        markdown: Markdown file for the table of a model zoo.
        beside: JSON file of an earlier run, on a GPU say, whose images/s stand in that table, too.
        resume: measure only what --output does not hold yet, which must have been measured under the same conditions.

    Raises:
        ValueError: an unknown model or device, results of other conditions, or, once all else is written, a model that
            failed.
    """
    for option, value in {"batch_size": batch_size, "img_size": img_size}.items():
        if value is not None and value < 1:
            raise ValueError(f"--{option} must be at least 1, got {value}")
    names = _expand(models)
    check_writable(json=output, csv=csv, md=markdown)
    resolved = resolve_device(device)
    conditions = Conditions(
        img_size, batch_size, str(resolved), precision, train, channels_last, torch.get_num_threads(), seconds,
        model_kwargs or {},
    )  # fmt: skip
    settings = {key: value for key, value in asdict(conditions).items() if key != "threads"}
    origin = {**settings, **provenance(resolved)}
    others = None if beside is None else read_results(beside)
    held = _held(output, origin) if resume else {}
    rows = []
    for number, name in enumerate(names, 1):
        with show_progress(f"measuring {name} ({number} of {len(names)})"):
            rows.append(held.get(name) or _measure_apart(name, conditions))
        # The files are whole after every model: an interrupted run keeps what it has.
        kept = rows + [row for other, row in held.items() if other not in names[:number]]
        results = {"results": kept, **origin}
        if output:
            write_json(results, output)
        if csv:
            write_csv(rows, csv)
        if markdown:
            write_zoo([results, others] if others else [results], markdown)
    mode = "training" if train else "inference"
    print_table([_displayed(row) for row in rows], title=f"{mode}, {resolved}, {precision}, batch {batch_size}")
    failed = [f"{row['model']} ({row['error']})" for row in rows if row["error"]]
    if failed:
        raise ValueError(f"{len(failed)} of {len(rows)} models could not be measured: {'; '.join(failed)}")


def _expand(models: str) -> list[str]:
    """The names behind ``a,b,nat_*``, each once, checked before anything is measured."""
    names: list[str] = []
    for word in filter(None, (word.strip() for word in models.split(","))):
        package = word.removeprefix("module:")
        if package != word:
            found = [name for name in timm.list_models() if _registered_by(name, package)]
            if not found:
                raise ValueError(f"no model is registered by {package!r} (--models {word}): module:visionattn has ours")
            names += found
        elif set(word) & set("*?["):
            found = fnmatch.filter(timm.list_models(), word)
            if not found:
                raise ValueError(f"no model matches {word!r}")
            names += found
        else:
            check_model_name(word)
            names.append(word)
    if not names:
        raise ValueError(f"--models {models!r} names no model")
    return list(dict.fromkeys(names))


def _registered_by(name: str, package: str) -> bool:
    return f"{model_entrypoint(name).__module__}.".startswith(f"{package}.")


def _held(output: Path | None, origin: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by model that an interrupted run has measured under the conditions of this one."""
    if output is None:
        raise ValueError("--resume goes on with the file of --output: name it, too")
    if not output.exists():
        return {}
    earlier = read_results(output)
    # These very files may be what differs from the commit.
    earlier["git_revision"], revision = (
        (found["git_revision"] or "").removesuffix("-dirty") for found in (earlier, origin)
    )
    for key, value in {**origin, "git_revision": revision}.items():
        if key != "command" and earlier.get(key) != value:
            raise ValueError(
                f"{output} was measured with {key} {earlier.get(key)!r}, here it is {value!r}: "
                "leave out --resume, or name another --output"
            )
    return {row["model"]: row for row in earlier["results"] if not row["error"]}


def _measure_apart(name: str, conditions: Conditions) -> dict[str, Any]:
    """:func:`measure` in a process of its own; a failure is a row, too."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(measure, name, conditions).result()
        except BrokenProcessPool:
            error = "its process was killed, most likely for want of memory: lower --batch_size"
        except Exception as caught:
            error = f"{type(caught).__name__}: {one_line(str(caught))}"
    return {"model": name, "error": error}


def _displayed(row: dict[str, Any]) -> dict[str, str]:
    if row["error"]:
        return {"model": row["model"], "img/s": "failed"}
    return {
        "model": row["model"],
        "img/s": f"{row['images_per_second']:,.1f}",
        "ms/step": f"{row['median_ms']:,.1f}",
        "params M": f"{row['params_m']:.2f}",
        "GMACs": "–" if row["gmacs"] is None else f"{row['gmacs']:.3f}",
        "peak MiB": f"{row['peak_memory_mib']:,.0f}",
        "input": f"{row['img_height']}×{row['img_size']}",
    }
