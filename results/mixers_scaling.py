"""Measure time and peak memory of every token mixer against the side of its map.

    python results/mixers_scaling.py

One mixer alone: 64 channels, 2 heads, one square map, float32 on the CPU. All mixers are timed in turn on each map; a
time is the median. Peak memory is what torch's allocator handed out at once during forward and backward, beyond weights
and input. That is exact for tensors, also those inside operators, and leaves out what the process holds otherwise.
Full attention is torch's fused operator, which never holds the matrix of scores.

results/mixers_scaling.csv gets all rows, with their origin in the JSON file beside it. It is drawn as
docs/images/mixers_scaling.png, and docs/mixers.md gets the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from kernels.bench.measure import peak_bytes, time_in_turn
from kernels.bench.report import Report, fit_exponent, read_origin, read_rows
from results.pages import fill
from visionattn.layers.mixers import create_mixer
from visionattn.viz.figure import new_figure, save_figure, style_axes

ROOT = Path(__file__).parent.parent
TABLE, PAGE, PLOT = (
    ROOT / "results" / "mixers_scaling.csv",
    ROOT / "docs" / "mixers.md",
    ROOT / "docs" / "images" / "mixers_scaling.png",
)
BEGIN, END = "<!-- scaling: made by results/mixers_scaling.py -->", "<!-- scaling ends -->"
DIM, HEADS, REPEATS = 64, 2, 15
SIDES = (16, 32, 64, 128)
DEVICE = torch.device("cpu")

WINDOW, SMALLER_WINDOW, BLOCKS = "neighborhood 7×7", "neighborhood 5×5", "core, 8×8 blocks"
MIXERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    WINDOW: ("neighborhood", {"kernel_size": 7}),
    SMALLER_WINDOW: ("neighborhood", {"kernel_size": 5}),
    **{name: (name, {}) for name in ("full", "core")},
    BLOCKS: ("core", {"group_size": lambda side: side // 8}),
    **{name: (name, {}) for name in ("power", "parallax", "local_linear")},
    **{name: (name, {}) for name in ("taylor", "elu", "routing", "ttt", "blocks")},
}
"""The mixer and its options, some of them functions of the side, by the name in the table."""

COLUMNS = ("mixer", "side", "positions", "direction", "median_ms", "ratio_to_window", "peak_mib")
FORWARD, TRAINING = "forward", "forward+backward"
MOST_GROWTH, MOST_TIME = 4.2, 1.3
"""Peak memory of `ttt` and `core` at four times the positions, over that before; time of BLOCKS over SMALLER_WINDOW."""

Rows = Sequence[Mapping[str, str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all mixers, and make table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error(f"--threads must be at least 1; got {args.threads}")
    torch.set_num_threads(args.threads)
    report = Report(TABLE, DEVICE, COLUMNS, dim=DIM, num_heads=HEADS, batch=1, dtype="float32", repeats=REPEATS)
    for side in SIDES:
        report.add(measure(side))
        print(f"{side}×{side} is measured", flush=True)
    rows = read_rows(TABLE)
    print("\n".join(claims(rows)))
    draw(rows)
    fill(PAGE, BEGIN, END, markdown(rows))
    return 0


def measure(side: int) -> list[dict[str, Any]]:
    """Return two rows for each mixer, on a map of this side: forward without gradients, and forward with backward."""
    torch.manual_seed(0)
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, (mixer, options) in MIXERS.items():
        options = {key: value(side) if callable(value) else value for key, value in options.items()}
        forward, training = runs_of(create_mixer(mixer, DIM, HEADS, **options), side)
        runs |= {(name, FORWARD): forward, (name, TRAINING): training}
    by_text = {" / ".join(key): run for key, run in runs.items()}
    times = time_in_turn(by_text, DEVICE, REPEATS)  # and so each has run before its memory is counted
    rows = []
    for (name, direction), run in runs.items():
        milliseconds = times[f"{name} / {direction}"]
        rows.append(
            {
                "mixer": name,
                "side": side,
                "positions": side**2,
                "direction": direction,
                "median_ms": milliseconds,
                "ratio_to_window": milliseconds / times[f"{WINDOW} / {direction}"],
                "peak_mib": peak_bytes(run, DEVICE) / 2**20,
            }
        )
    return rows


def runs_of(mixer: torch.nn.Module, side: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return a forward pass of a mixer in evaluation, and one with its backward pass in training."""
    x = torch.randn(1, side, side, DIM)
    grad, leaves = torch.randn_like(x), [x.clone().requires_grad_(), *mixer.parameters()]

    def forward() -> None:
        with torch.no_grad():
            mixer.eval()(x)

    def training() -> None:
        torch.autograd.grad(mixer.train()(leaves[0]), leaves, grad, allow_unused=True)

    return forward, training


def column(rows: Rows, mixer: str, key: str, direction: str = TRAINING) -> list[float]:
    """Return the numbers of a mixer from the smallest map to the largest."""
    return [float(row[key]) for row in rows if (row["mixer"], row["direction"]) == (mixer, direction)]


def claims(rows: Rows) -> list[str]:
    """Return a line for each claim on memory and time: by how much it holds, or does not."""
    lines = []
    for mixer in ("ttt", "core"):
        peaks = column(rows, mixer, "peak_mib")
        growth = max(large / small for small, large in pairwise(peaks))
        lines.append(f"{mixer}: peak memory at 4 N at most {growth:.2f} times that at N ({said(growth, MOST_GROWTH)})")
    times = [column(rows, mixer, "median_ms") for mixer in (BLOCKS, SMALLER_WINDOW)]
    ratio = max(a / b for a, b in zip(*times, strict=True))
    lines.append(f"{BLOCKS}: time at most {ratio:.2f} times that of {SMALLER_WINDOW} ({said(ratio, MOST_TIME)})")
    return lines


def said(found: float, most: float) -> str:
    """Return whether a claim holds."""
    return f"claimed: {most}, {'holds' if found <= most else 'does not hold'}"


def markdown(rows: Rows) -> str:
    """Return the tables of time and of memory, under a line with their origin."""
    sides = list(dict.fromkeys(row["side"] for row in rows))
    times, peaks = [], []
    for mixer in dict.fromkeys(row["mixer"] for row in rows):
        milliseconds, ratios = (column(rows, mixer, key) for key in ("median_ms", "ratio_to_window"))
        memory, positions = (column(rows, mixer, key) for key in ("peak_mib", "positions"))
        cells = [f"{time:.3g} ({ratio:.2g}×)" for time, ratio in zip(milliseconds, ratios, strict=True)]
        times.append(f"| {mixer} | {' | '.join(cells)} |")
        power = f"N^{fit_exponent(positions, memory):.2f}"
        peaks.append(f"| {mixer} | {' | '.join(f'{peak:.3g}' for peak in memory)} | {power} |")
    ruler, names = "---:|" * len(sides), " | ".join(f"{side}×{side}" for side in sides)
    origin = f"{rows[0]['hardware']}, threads: {rows[0]['threads']}, torch {read_origin(TABLE)['versions']['torch']}"
    return "\n".join(
        [
            f"Forward and backward in milliseconds, and relative to {WINDOW} ({origin}):\n",
            f"| mixer | {names} |",
            f"|---|{ruler}",
            *times,
            "\nPeak memory of forward and backward in MiB, and its growth with the number of positions N:\n",
            f"| mixer | {names} | growth |",
            f"|---|{ruler}---:|",
            *peaks,
        ]
    )


def draw(rows: Rows) -> None:
    """Draw time and memory of forward and backward against the side, each relative to the 7×7 window."""
    figure = new_figure(11.0, 4.4)
    titles = {"median_ms": "time", "peak_mib": "peak memory"}
    panels = figure.subplots(1, len(titles))
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        reference = column(rows, WINDOW, key)
        sides = [int(side) for side in column(rows, WINDOW, "side")]
        for number, mixer in enumerate(dict.fromkeys(row["mixer"] for row in rows)):
            values = [a / b for a, b in zip(column(rows, mixer, key), reference, strict=True)]
            axes.plot(sides, values, "osD^vPX"[number % 7] + ("-" if number < 7 else "--"), label=mixer, markersize=5)
        axes.set_xticks(sides, [f"{side}×{side}" for side in sides])
        axes.yaxis.set_major_formatter(lambda x, _: f"{x:g}×")
        style_axes(axes, title=f"{title} relative to {WINDOW}", xlabel="map")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    save_figure(figure, PLOT)


if __name__ == "__main__":
    sys.exit(main())
