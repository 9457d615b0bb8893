"""Make weights, table and plot of trainings on CIFAR-10, from their run folders.

    python results/cifar10.py --root data/cifar10 runs/cifar10-*/0

The best epoch of each run, by the images that were held out of the training split, is exported in half precision, after
its large matrices were rounded to 8 bits. These weights are shown the test images, once; `test.json` in the run folder
keeps what came out. Of each model, the run of the lowest seed goes to visionattn/models/weights. results/cifar10.csv
gets a row for each run and keeps those of earlier calls; of it are made results/cifar10.png and the table in README.md,
also where no run folder is given. The encoder of a masked autoencoder goes to the weights alone.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.transforms import Bbox
from safetensors.torch import load_file, save_file

from results.pages import fill, name_hardware, read_table
from visionattn.cli.classify import classify
from visionattn.evaluation import ImageOptions
from visionattn.export.hub import save_folder
from visionattn.export.network import load_network
from visionattn.models._weights import CHECKSUMS, FOLDER, pack, unpack
from visionattn.output import write_csv, write_text
from visionattn.viz.figure import BLUE, new_figure, save_figure, style_axes

ROOT = Path(__file__).parent.parent
TABLE, PLOT, README = ROOT / "results" / "cifar10.csv", ROOT / "results" / "cifar10.png", ROOT / "README.md"
SPEEDS = ROOT / "docs" / "zoo-cpu.json"
BEGIN, END = "<!-- cifar10: made by results/cifar10.py -->", "<!-- cifar10 ends -->"
TAG, TAG_ENCODER = "cifar10", "mae_cifar10"
BEST, EXPORT, PACKED = Path("checkpoints", "best.ckpt"), "export", "packed.safetensors"
SUPERVISED = "CIFAR-10, 45,000 of its 50,000 training images"
UNLABELLED = "CIFAR-10, its training images without their labels"
PUBLISHED = {"terminator_pico": "95.32, of `terminator` with 100 epochs"}
"""Figures of the papers, or of their authors' logs, for the nearest model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Update all files that are made from run folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders of train.py")
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"), help="images, in train/ and test/")
    args = parser.parse_args(argv)
    rows = {(row["model"], row["seed"]): row for row in read_table(TABLE)}
    runs: dict[tuple[str, str], Path] = {}
    for run in args.runs:
        if not (run / "summary.json").is_file():
            print(f"{run}: this training did not come to its end, it is left out", file=sys.stderr)
            continue
        summary = json.loads((run / "summary.json").read_text())
        if summary["task"] == "mae":
            export(run, UNLABELLED)
            ship(run, f"{summary['model']}.{TAG_ENCODER}")
            continue
        row = evaluate(run, args.root)
        rows[row["model"], row["seed"]] = row
        runs[row["model"], row["seed"]] = run
    ordered = sorted(rows.values(), key=lambda row: (row["model"], int(row["seed"])))
    write_csv(ordered, TABLE)
    entries = summaries(ordered)
    for entry in entries:
        if run := runs.get((entry["model"], entry["seed"])):
            ship(run, f"{entry['model']}.{TAG}")
    write_checksums()
    speeds = {row["model"]: row["images_per_second"] for row in json.loads(SPEEDS.read_text())["results"]}
    draw(entries, speeds)
    fill(README, BEGIN, END, markdown(entries, speeds))
    return 0


def evaluate(run: Path, root: Path) -> dict[str, Any]:
    """Return the row of a run; its export sees the test images once."""
    summary = json.loads((run / "summary.json").read_text())
    checkpoint, found = run / BEST, run / "test.json"
    if not found.exists() or found.stat().st_mtime < checkpoint.stat().st_mtime:
        export(run, SUPERVISED)
        classify(
            checkpoint=run / EXPORT / "model.safetensors",
            model=summary["model"],
            data=ImageOptions(root=str(root), split="test"),
            device="cpu",
            output=found,
        )
    export(run, SUPERVISED, found)
    test = json.loads(found.read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    return {
        "model": summary["model"],
        "seed": str(summary["seed"]),
        "parameters": summary["parameters"],
        "epochs": config["trainer"]["max_epochs"],
        "minutes": round(summary["train_seconds"] / 60, 1),
        "held_out_top1": round(100 * summary["best"]["val_top1"], 2),
        "test_top1": round(100 * test["top1"], 2),
        "test_top5": round(100 * test["top5"], 2),
        "hardware": name_hardware(summary),
        "torch": summary["versions"]["torch"],
        "command": summary["command"],
    }


def export(run: Path, data_name: str, evaluation: Path | None = None) -> None:
    """Write the best epoch of a run with large matrices rounded: a folder in half precision, and PACKED in 8 bits."""
    network = load_network(run / BEST, None, False, None, "average")
    state = network.module.state_dict()
    rounded = pack(state)
    network.module.load_state_dict(unpack({**state, **rounded}))
    save_folder(network, run / EXPORT, run / BEST, "float16", "apache-2.0", data_name=data_name, evaluation=evaluation)
    save_file({**load_file(run / EXPORT / "model.safetensors"), **rounded}, run / PACKED)


def ship(run: Path, name: str) -> None:
    """Copy the export of a run into the package, with large matrices in 8 bits."""
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    shutil.copytree(run / EXPORT, FOLDER / name)
    shutil.copy(run / PACKED, FOLDER / name / "model.safetensors")
    card = FOLDER / name / "README.md"
    text = card.read_text(encoding="utf-8").replace(", float16 |", ", float16, large matrices rounded to 8 bits |")
    use = '"local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:OWNER/NAME'
    write_text(text.replace(use, f'"{name}", pretrained=True).eval()'), card)


def write_checksums() -> None:
    """Write a line for each file of weights."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FOLDER).as_posix()}\n"
        for path in sorted(FOLDER.glob("*/model.safetensors"))
    ]
    write_text("".join(lines), CHECKSUMS)


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry per model: the row of its lowest seed, with mean and spread over all seeds; the best first."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        scores = [float(row["test_top1"]) for row in own]
        spread = statistics.stdev(scores) if len(scores) > 1 else None
        found.append({**own[0], "mean": statistics.mean(scores), "spread": spread, "seeds": len(own)})
    return sorted(found, key=lambda entry: -float(entry["test_top1"]))


def markdown(entries: Sequence[dict[str, Any]], speeds: dict[str, float]) -> str:
    """Return the table of README.md."""
    lines = [
        "| weights | parameters | img/s | epochs, minutes | test top-1 | mean ± deviation (seeds) | published |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for entry in entries:
        model = entry["model"]
        speed = f"{speeds[model]:,.0f}" if model in speeds else "–"
        spread = "–" if entry["spread"] is None else f"{entry['mean']:.2f} ± {entry['spread']:.2f} ({entry['seeds']})"
        lines.append(
            f"| `{model}.{TAG}` | {float(entry['parameters']) / 1e6:.2f} M | {speed} | "
            f"{entry['epochs']}, {float(entry['minutes']):.0f} | {float(entry['test_top1']):.2f} | {spread} | "
            f"{PUBLISHED.get(model, '–')} |"
        )
    return "\n".join(lines)


def draw(entries: Sequence[dict[str, Any]], speeds: dict[str, float]) -> None:
    """Draw accuracy against parameters, and against images per second where these were measured."""
    figure = new_figure(9.0, 3.6)
    plots = figure.subplots(1, 2, sharey=True)
    columns = {
        "parameters (M)": {entry["model"]: float(entry["parameters"]) / 1e6 for entry in entries},
        "images per second, one at a time, CPU": speeds,
    }
    drawn = []
    for axes, (label, values) in zip(plots, columns.items(), strict=True):
        shown = [entry for entry in entries if entry["model"] in values]
        points = [(values[entry["model"]], float(entry["test_top1"])) for entry in shown]
        style_axes(axes, xlabel=label, ylabel="CIFAR-10 test top-1 (%)")
        axes.margins(x=0.25, y=0.15)
        spreads = [entry["spread"] or 0.0 for entry in shown]
        axes.errorbar([x for x, _ in points], [y for _, y in points], yerr=spreads, fmt="o", color=BLUE, capsize=3)
        drawn.append((axes, [entry["model"] for entry in shown], points))
    figure.draw_without_rendering()  # only then is it known where things are
    for axes, names, points in drawn:
        label_points(axes, names, points)
    save_figure(figure, PLOT)


def label_points(axes: Any, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Write names beside points, each at the first free place, if any."""
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(points)]
    for name, point in zip(names, points, strict=True):
        for right, above in itertools.product((True, False), (4, -11, 12, -19, 20)):
            place = {"xytext": (5 if right else -5, above), "ha": "left" if right else "right"}
            text = axes.annotate(name, point, textcoords="offset points", fontsize=8, **place)
            box = text.get_window_extent()
            if axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


if __name__ == "__main__":
    sys.exit(main())
