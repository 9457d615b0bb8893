"""Draw the images of kernels/bench/results from the CSV files there; needs matplotlib.

python -m kernels.bench.plot
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.bench.peers import PEERS
from kernels.bench.problems import DIRECTIONS
from kernels.bench.report import fit_exponent, read_rows
from kernels.bench.script import RESULTS, run
from kernels.bench.table import group
from visionattn.viz.figure import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[dict[str, str]]
STYLES = dict(
    zip(
        PEERS,
        ((ORANGE, "o"), (BLUE, "s"), (GREY, "|"), (GREY, "D"), (GREY, "P"), (GREEN, "^"), ("#CC79A7", "v")),
        strict=True,
    )
)


def main(argv: list[str] | None = None) -> int:
    """Draw an image beside every result file of a kind that has one, unless nothing is compared in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    for path in sorted(args.results.glob("*.csv")):
        draw = {"attention": draw_attention, "memory": draw_memory}.get(path.stem.partition("-")[0])
        rows = read_rows(path)
        if draw is not None and len({row.get("contender") for row in rows}) > 1:
            print(f"wrote {draw(rows, path.with_suffix('.png'))}")
    return 0


def draw_attention(rows: Rows, path: Path) -> Path:
    """Draw the factor by which each peer takes longer on each problem, forward and with backward."""
    dtypes, problems = (list(dict.fromkeys(row[key] for row in rows)) for key in ("dtype", "problem"))
    figure = new_figure(10, len(dtypes) * (1.2 + 0.24 * len(problems)))
    panels = figure.subplots(len(dtypes), len(DIRECTIONS), squeeze=False, sharex=True, sharey=True)
    for dtype, line in zip(dtypes, panels, strict=True):
        for direction, axes in zip(DIRECTIONS, line, strict=True):
            chosen = [row for row in rows if (row["dtype"], row["direction"]) == (dtype, direction)]
            _draw_ratios(axes, chosen, problems)
            style_axes(axes, title=f"{direction}, {dtype}", xlabel="time relative to this library (log scale)")
    handles = {
        label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return save_figure(figure, path)


def _draw_ratios(axes: Axes, rows: Rows, problems: list[str]) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    for peer, (colour, marker) in STYLES.items():
        found = [row for row in rows if row["contender"] == peer]
        if found:
            ratios = [float(row["ratio_to_ours"]) for row in found]
            places = [problems.index(row["problem"]) for row in found]
            axes.plot(ratios, places, marker, color=colour, label=peer, markersize=6, markeredgewidth=1.5)
    axes.set_yticks(range(len(problems)), problems, fontsize="small")
    axes.set_ylim(len(problems) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}×")


def draw_memory(rows: Rows, path: Path) -> Path:
    """Draw peak memory against positions, both axes logarithmic, with the exponent of each line."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = new_figure(6.4 * len(dtypes), 4.2)
    for dtype, axes in zip(dtypes, figure.subplots(1, len(dtypes), squeeze=False)[0], strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = {float(row["positions"]): row["map"] for row in rows}
        chosen = [row for row in rows if row["dtype"] == dtype]
        for ((name,), found), marker in zip(group(chosen, "contender", inner="map").items(), "osD^vPX*", strict=False):
            x, y = ([float(row[key]) for row in found.values()] for key in ("positions", "peak_mb"))
            label = f"{name}: exponent {fit_exponent(x, y):.2f}" if len(x) > 1 else name
            axes.plot(x, y, marker=marker, label=label)
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        style_axes(axes, title=f"Peak memory, forward+backward, {dtype}", xlabel="map", ylabel="MiB")
        axes.legend(frameon=False)
    return save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(run(main))
