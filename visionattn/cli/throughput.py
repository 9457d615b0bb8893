"""``eval.py throughput``: speed, size and memory of models."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_table
from visionattn.cli.zoo import read_held, read_results, write_zoo
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.throughput import ThroughputRow, expand_names, measure_throughput
from visionattn.evaluation.timing import Conditions
from visionattn.output import check_writable, write_csv, write_json
from visionattn_kernels.provenance import provenance


def throughput(
    models: list[str],
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
        beside: JSON file of an earlier run, for example on a GPU, whose images/s are added to that table.
        resume: measure only models that --output does not hold yet; the conditions must be the same.
    """
    names = expand_names(models)
    check_writable(json=output, csv=csv, md=markdown)
    resolved, kwargs = resolve_device(device), model_kwargs or {}
    conditions = Conditions(
        img_size, batch_size, str(resolved), precision, train, channels_last, seconds=seconds, model_kwargs=kwargs
    )
    settings = {key: value for key, value in asdict(conditions).items() if key != "threads"}
    origin = {**settings, **provenance(resolved)}
    others = [] if beside is None else [read_results(beside)]
    held = read_held(output, origin) if resume else {}

    def write(rows: list[ThroughputRow]) -> None:
        """Write files that are whole after every model, so that an interrupted run keeps its rows."""
        found = [row.to_dict() for row in rows]
        kept = [row.to_dict() for name, row in held.items() if name not in names[: len(rows)]]
        results = {"results": found + kept, **origin}
        if output:
            write_json(results, output)
        if csv:
            write_csv(found, csv)
        if markdown:
            write_zoo([results, *others], markdown)

    rows = measure_throughput(names, conditions, held=held, after_each=write, progress=show_progress)
    mode = "training" if train else "inference"
    print_table([_displayed(row) for row in rows], title=f"{mode}, {resolved}, {precision}, batch {batch_size}")
    failed = [f"{row.model} ({row.error})" for row in rows if row.error]
    if failed:
        raise ValueError(f"{len(failed)} of {len(rows)} models could not be measured: {'; '.join(failed)}")


def _displayed(row: ThroughputRow) -> dict[str, str]:
    if row.error:
        return {"model": row.model, "img/s": "failed"}
    return {
        "model": row.model,
        "img/s": f"{row.images_per_second:,.1f}",
        "ms/step": f"{row.median_ms:,.1f}",
        "params M": f"{row.params_m:.2f}",
        "GMACs": "–" if row.gmacs is None else f"{row.gmacs:.3f}",
        "peak MiB": f"{row.peak_memory_mib:,.0f}",
        "input": f"{row.img_height}×{row.img_size}",
    }
