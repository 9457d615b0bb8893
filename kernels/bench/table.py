"""Write the tables of kernels/README.md from the CSV files of kernels/bench/results.

    python -m kernels.bench.table            # rewrites what stands between the markers
    python -m kernels.bench.table --check    # fails if that would change anything

The table of results/NAME.csv stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kernels.bench.halonet import PROJECTIONS
from kernels.bench.peers import EARLIER, OURS, PEERS, TIMM
from kernels.bench.problems import DIRECTIONS
from kernels.bench.report import fit_exponent, geometric_mean, published, read_origin, read_rows
from kernels.bench.script import RESULTS, run

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
STAGE = re.compile(r"nat-tiny-(\d) .* d(\d+)( rpb)?$")

Rows = Sequence[dict[str, str]]


def main(argv: list[str] | None = None) -> int:
    """Update or check the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the tables are out of date")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    old = args.readme.read_text(encoding="utf-8")
    new = update(old, args.results)
    if args.check and new != old:
        raise ValueError(f"the tables of {args.readme.name} are out of date; run python -m kernels.bench.table")
    if new != old:
        args.readme.write_text(new, encoding="utf-8")
    return 0


def update(text: str, results: Path) -> str:
    """Return the text with every table updated.

    Raises:
        ValueError: A table has no result file.
    """
    missing = [match[2] for match in BLOCK.finditer(text) if not (results / f"{match[2]}.csv").exists()]
    if missing:
        raise ValueError(
            f"no result file in {results} for the table {', '.join(missing)}; make it, or drop the markers"
        )
    return BLOCK.sub(lambda match: f"{match[1]}{render(results / f'{match[2]}.csv')}\n{match[3]}", text)


def render(path: Path) -> str:
    """Return the tables of one result file, in Markdown, under a line with their origin."""
    tables: dict[str, Callable[[Rows], str]] = {
        "attention": attention_tables,
        "backends": backends_table,
        "memory": memory_table,
        "gathered": gathered_table,
        "models": models_tables,
        "models-profile": profile_table,
        "halonet": halonet_table,
        "terminator": terminator_table,
        "training": training_table,
        "loader": loader_table,
        "startup": startup_table,
        "compile": compile_table,
        "multiscale": multiscale_table,
        "parallax": parallax_table,
        "full-attention": full_attention_table,
        "pointwise": pointwise_table,
    }
    kind = max((kind for kind in tables if path.stem.startswith(f"{kind}-")), key=len, default=None)
    if kind is None:
        raise ValueError(f"{path.name} must begin with {', '.join(tables)} and a dash")
    rows = read_rows(path)
    parts = [caption(path)]
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        parts += [f"{dtype}:", tables[kind]([row for row in rows if row["dtype"] == dtype])]
    return "\n\n".join(parts)


def caption(path: Path) -> str:
    """Return hardware, versions, command and revision of a result file."""
    origin = read_origin(path)
    hardware = origin["hardware"]
    count = hardware.get("threads")
    threads = f", {count} thread{'s' * (count != 1)}" if count else ""
    kept = "; freed memory kept" if origin.get("memory") == "kept" else ""
    versions = ", ".join(f"{name} {found}" for name, found in origin["versions"].items())
    revision = (origin["git_revision"] or "unknown").replace("-dirty", " with changes")
    where = f"{hardware['name']}{threads}{kept}; {versions}."
    script, *options = origin["command"].split(" ", 1)
    command = " ".join([script.removesuffix(".py"), *options])
    return f"{where} `python -m kernels.bench.{command}`, revision {revision}."


def attention_tables(rows: Rows) -> str:
    """Return means over stages, then a line per problem and direction: our time, and the factors of peers."""
    peers = [name for name in PEERS if any(row["contender"] == name for row in rows)]
    lines = []
    for (problem, direction), cells in group(rows, "problem", "direction").items():
        ours = cells[OURS]
        ratios = [f"{float(cells[name]['ratio_to_ours']):.1f}×" if name in cells else "–" for name in peers]
        floor = f"{100 * float(ours['fraction_of_floor']):.0f}%"
        lines.append([problem, direction, number(ours["median_ms"]), floor, *ratios, number(ours["peak_mb"])])
    full = markdown(["problem", "direction", "ours (ms)", "of the floor", *peers, "ours, peak MiB"], lines, text=2)
    return "\n\n".join(x for x in (summary(rows, peers), full, others(rows)) if x)


def summary(rows: Rows, peers: Sequence[str]) -> str:
    """Return factors by which peers take longer: geometric means over NAT-Tiny's stages 1-3."""
    groups: dict[str, Callable[[int, int, bool], bool]] = {
        "stage 1, d 1": lambda stage, d, rpb: stage == 1 and d == 1 and not rpb,
        "stages 1–3, d 1": lambda stage, d, rpb: stage <= 3 and d == 1 and not rpb,
        "stages 1–3, d 1, rpb": lambda stage, d, rpb: stage <= 3 and d == 1 and rpb,
        "stages 1–3, largest d": lambda stage, d, rpb: stage <= 3 and d > 1 and not rpb,
        "stages 1–3, largest d, rpb": lambda stage, d, rpb: stage <= 3 and d > 1 and rpb,
    }
    lines = []
    for direction in DIRECTIONS:
        for name, belongs in groups.items():
            cells = []
            for peer in peers:
                ratios = [
                    float(row["ratio_to_ours"])
                    for row in rows
                    if (row["contender"], row["direction"]) == (peer, direction)
                    and (match := STAGE.match(row["problem"]))
                    and belongs(int(match[1]), int(match[2]), bool(match[3]))
                ]
                cells.append(f"{geometric_mean(ratios):.1f}×" if ratios else "–")
            if set(cells) != {"–"}:
                lines.append([name, direction, *cells])
    if not lines:
        return ""
    return markdown(["geometric mean, NAT-Tiny", "direction", *peers], lines, text=2)


def others(rows: Rows) -> str:
    """Return published figures of these problems; they are not compared with ours."""
    lines = [
        [problem, row["contender"], f"{row['value']} {row['unit']}", row["hardware"], row["source"]]
        for problem, direction in group(rows, "problem", "direction")
        for row in published(problem, direction)
    ]
    return markdown(["published by others", "what", "figure", "hardware", "source"], lines, text=5) if lines else ""


def backends_table(rows: Rows) -> str:
    """Return a line per problem and direction: times of backends, the least in bold, and of the automatic choice."""
    names = list(dict.fromkeys(row["contender"] for row in rows if row["contender"] != OURS))
    lines = []
    for (problem, direction), cells in group(rows, "problem", "direction").items():
        times = {name: float(cells[name]["median_ms"]) for name in names if name in cells}
        best = min(times.values(), default=0.0)
        shown = {name: f"**{number(t)}**" if t == best else number(t) for name, t in times.items()}
        automatic = number(cells[OURS]["median_ms"])
        lines.append([problem, direction, *(shown.get(name, "–") for name in names), automatic])
    return markdown(["problem (ms)", "direction", *names, "automatic"], lines, text=2)


def memory_table(rows: Rows) -> str:
    """Return a line per backend: the peak at each map, and its growth."""
    maps = list(dict.fromkeys(row["map"] for row in rows))
    lines = []
    for (name,), cells in group(rows, "contender", inner="map").items():
        points = [(float(row["positions"]), float(row["peak_mb"])) for row in cells.values()]
        exponent = f"{fit_exponent(*zip(*points, strict=True)):.2f}" if len(points) > 1 else "–"
        lines.append([name, *(number(cells[size]["peak_mb"]) if size in cells else "–" for size in maps), exponent])
    return markdown(["peak MiB", *maps, "exponent"], lines, text=1)


def models_tables(rows: Rows) -> str:
    """Return a line per model and direction: our speed beside that of the earlier revision, then beside timm's models.

    The last lines of the first table are geometric means over all models that the earlier revision has.
    """
    earlier = next((row["version"] for row in rows if row["contender"] == EARLIER), None)
    means: dict[str, list[float]] = {}
    lines, beside = [], []
    for (model, batch, direction), cells in group(rows, "model", "batch", "direction", inner="contender").items():
        ours, before = cells[OURS], cells.get(EARLIER)
        if before:
            means.setdefault(direction, []).append(float(before["ratio_to_ours"]))
        speeds = [number(ours["images_per_second"]), number(before["images_per_second"]) if before else "–"]
        ratio = f"{float(before['ratio_to_ours']):.2f}×" if before else "–"
        memory = [number(x["peak_mb"]) if x else "–" for x in (ours, before)]
        floor = f"{100 * float(ours['fraction_of_floor']):.0f}%"
        own = [number(ours["gmacs"]), floor]
        line = [f"{model} B{batch}", direction]
        lines.append([*line, *speeds, ratio, *own, *memory] if earlier else [*line, speeds[0], *own, memory[0]])
    for direction, ratios in means.items():
        lines.append(["geometric mean", direction, "", "", f"{geometric_mean(ratios):.2f}×", "", "", "", ""])
    for row in rows:
        if row["contender"] == TIMM:
            ours = next(x for x in rows if (x["contender"], *key(x)) == (OURS, *key(row)))
            ratio, work = float(row["ratio_to_ours"]), float(row["gmacs"]) / float(ours["gmacs"])
            shown = [number(x[name]) for name in ("images_per_second", "gmacs") for x in (ours, row)]
            beside.append(
                [row["model"], row["network"], row["direction"], *shown, f"{ratio:.2f}×", f"{ratio / work:.2f}×"]
            )
    header = ["model", "direction", "ours (img/s)"]
    header += [f"{earlier} (img/s)", "ours is faster"] if earlier else []
    header += ["GMACs per image", "of the floor", "ours, peak MiB", *([f"{earlier}, peak MiB"] if earlier else [])]
    tables = [markdown(header, lines, text=2)]
    if beside:
        pair = [f"{what} {who}" for what in ("img/s", "GMACs") for who in ("ours", "timm")]
        names = ["ours", "timm's", "direction", *pair, "ours is faster", "per MAC"]
        tables.append(markdown(names, beside, text=3))
    return "\n\n".join(tables)


def key(row: dict[str, str]) -> tuple[str, str]:
    """Return the model and direction of a row."""
    return row["model"], row["direction"]


def profile_table(rows: Rows) -> str:
    """Return a line per model and revision: the share of each kind of operation in training steps."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lines = []
    for (model, batch, contender), cells in group(rows, "model", "batch", "contender", inner="kind").items():
        shares = [f"{100 * float(cells[kind]['share']):.0f}%" if kind in cells else "–" for kind in kinds]
        lines.append([f"{model} B{batch}", contender, *shares])
    return markdown(["model", "revision", *kinds], lines, text=2)


def gathered_table(rows: Rows) -> str:
    """Return a line per model and direction: images per second, and published figures beside them."""
    lines = []
    for (model, batch, direction, compiled), cells in group(rows, "model", "batch", "direction", "compile").items():
        found = cells.get("gather")
        ratio = f"{float(found['ratio_to_ours']):.1f}×" if found else "–"
        speeds = [number(cells[name]["images_per_second"]) if name in cells else "–" for name in (OURS, "gather")]
        theirs = published(f"{model} B{batch}", direction)
        cited = ", ".join(f"{row['contender']} {row['value']}" for row in theirs)
        cited += f" ({theirs[0]['hardware']}, {theirs[0]['dtype']}; {theirs[0]['source']})" if theirs else "–"
        peak = number(cells[OURS]["peak_mb"])
        name = f"{model} B{batch}{', compiled' if compiled == 'True' else ''}"
        lines.append([name, direction, *speeds, ratio, peak, cited])
    header = ["model", "direction", "ours (img/s)", "gather (img/s)", "ours is faster", "ours, peak MiB", "published"]
    return markdown(header, lines, text=2)


def halonet_table(rows: Rows) -> str:
    """Return a line per network, part and direction: our time, timm's factor, our projections' share."""
    lines = []
    for (model, batch, part, direction), cells in group(rows, "model", "batch", "part", "direction").items():
        ratios = {name: float(row["ratio_to_ours"]) for name, row in cells.items()}
        share = f"{100 * ratios[PROJECTIONS]:.0f}%" if PROJECTIONS in ratios else "–"
        time = number(cells[OURS]["median_ms"])
        lines.append([f"{model} B{batch}", part, direction, time, f"{ratios['timm']:.1f}×", share])
    return markdown(["network", "part", "direction", "ours (ms)", "timm", "projections"], lines, text=3)


def terminator_table(rows: Rows) -> str:
    """Return a line per mode and direction: our time, and the factor by which the transcription takes longer."""
    lines = [
        [f"{model} B{batch}", mode, direction, number(cells[OURS]["median_ms"]), f"{ratio:.1f}×"]
        for (model, batch, mode, direction), cells in group(rows, "model", "batch", "mode", "direction").items()
        if (ratio := float(cells["transcription"]["ratio_to_ours"]))
    ]
    return markdown(["network", "mode", "direction", "ours (ms)", "transcription"], lines, text=3)


def full_attention_table(rows: Rows) -> str:
    """Return a line per shape and direction: the time of plain operators, and the factor of the fused one."""
    lines = [
        [batch, heads, tokens, head_dim, direction, number(cells["plain"]["median_ms"]), f"{ratio:.2f}×"]
        for (batch, heads, tokens, head_dim, direction), cells in group(
            rows, "batch", "heads", "tokens", "head_dim", "direction"
        ).items()
        if (ratio := float(cells["fused"]["ratio_to_plain"]))
    ]
    return markdown(["images", "heads", "tokens", "head_dim", "direction", "plain (ms)", "fused"], lines, text=5)


def pointwise_table(rows: Rows) -> str:
    """Return the geometric mean, over shapes, of the product's time relative to the convolution's, and its rates."""
    found = [row for row in rows if row["contender"] == "product"]
    lines = []
    for direction in dict.fromkeys(row["direction"] for row in found):
        some = [row for row in found if row["direction"] == direction]
        rates = [float(row["gflops"]) for row in some]
        ratio = geometric_mean([float(row["ratio_to_convolution"]) for row in some])
        lines.append([direction, f"{ratio:.2f}×", f"{min(rates):.0f} to {max(rates):.0f}"])
    return markdown(["direction", "time of product over convolution", "GFLOP/s of the product"], lines, text=1)


def training_table(rows: Rows) -> str:
    """Return a line per model and number of workers: our time and memory, and those of the other loops over ours."""
    others = [name for name in dict.fromkeys(row["contender"] for row in rows) if name != OURS]
    lines = []
    for (model, batch, workers), cells in group(rows, "model", "batch", "workers").items():
        ours = cells[OURS]
        ratios = [f"{float(ours['step_ms']) / float(cells[name]['step_ms']):.2f}×" for name in others]
        memory = [f"{float(ours['peak_mb']) - float(cells[name]['peak_mb']):+.0f}" for name in others]
        first = [number(cells[name]["first_step_s"]) for name in (OURS, *others)]
        lines.append(
            [f"{model} B{batch}", workers, number(ours["step_ms"]), *ratios, *first, number(ours["peak_mb"]), *memory]
        )
    over, beside = ([f"{what} {name}" for name in others] for what in ("ours over", "MiB beside"))
    first = [f"first step (s), {name}" for name in ("ours", *others)]
    return markdown(["model", "workers", "ours (ms)", *over, *first, "ours, peak MiB", *beside], lines, text=1)


def loader_table(rows: Rows) -> str:
    """Return a line per size and number of workers: images per second, without and with a cache, and our speed-up."""
    cached = f"{OURS}, cache"
    ours = [name for name in (OURS, cached) if any(row["contender"] == name for row in rows)]
    others = [name for name in dict.fromkeys(row["contender"] for row in rows) if name not in ours]
    lines = [
        [
            size,
            workers,
            *(number(cells[name]["images_per_second"]) for name in ours),
            *(f"{float(cells[name]['ratio_to_ours']):.2f}×" for name in others),
        ]
        for (size, workers), cells in group(rows, "size", "workers").items()
    ]
    rates = ["ours (img/s)", "with cache (img/s)"][: len(ours)]
    return markdown(["pixels", "workers", *rates, *(f"ours over {name}" for name in others)], lines, text=0)


def startup_table(rows: Rows) -> str:
    """Return a line per command or training: its time, its ratio to `import timm`, and its memory."""
    names = [row["command"] if row["command"].startswith("first step") else f"`{row['command']}`" for row in rows]
    lines = [
        [name, number(row["median_ms"]), f"{float(row['ratio_to_timm']):.2f}×", number(row["peak_mb"])]
        for name, row in zip(names, rows, strict=True)
    ]
    return markdown(["command", "ms", "over `import timm`", "peak MiB"], lines, text=1)


def compile_table(rows: Rows) -> str:
    """Return a line per problem: instructions of each kernel per useful score, of 0.1.0 and of today."""
    arch, dtype = rows[0]["arch"], rows[0]["dtype"]
    before = [row for row in read_rows(RESULTS / f"compile-{arch}-f9dff0c.csv") if row["dtype"] == dtype]
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))

    def cell(row: dict[str, str] | None) -> str:
        if row is None or not row["per_useful"]:
            return "–"
        return f"{float(row['per_useful']):.0f}{' S' if row['stack'] != '0' else ''}"

    old, lines = group(before, "problem", inner="kernel"), []
    for problem, cells in group(rows, "problem", inner="kernel").items():
        changes = [f"{cell(old.get(problem, {}).get(x))} → {cell(cells.get(x))}" for x in kernels]
        lines.append([*problem, *changes])
    return markdown(["instructions per useful score", *kernels], lines, text=1)


def multiscale_table(rows: Rows) -> str:
    """Return a line per map and direction: our time, and the factors of the merged calls and neighborhood attention."""
    lines = [
        [f"{side}×{side} B{batch}", direction, *factors(cells, "visionattn", "merged calls", "neighborhood 7x7")]
        for (side, batch, direction), cells in group(rows, "side", "batch", "direction").items()
    ]
    return markdown(["map", "direction", "ours (ms)", "merged calls", "7×7 neighborhood"], lines, text=2)


def parallax_table(rows: Rows) -> str:
    """Return a line per problem and direction: our time, and the factors of the unfused pair and plain attention."""
    lines = [
        [f"{side}×{side}, k {k}", direction, *factors(cells, "parallax", "parallax, unfused", "neighborhood attention")]
        for (side, k, direction), cells in group(rows, "map", "kernel_size", "direction").items()
    ]
    return markdown(["problem", "direction", "ours (ms)", "unfused", "neighborhood attention"], lines, text=2)


def factors(cells: dict[str, dict[str, str]], ours: str, *others: str) -> list[str]:
    """Return our time, and the factor by which each other contender takes longer."""
    time = float(cells[ours]["median_ms"])
    return [number(time), *(f"{float(cells[name]['median_ms']) / time:.2f}×" for name in others)]


def group(rows: Rows, *keys: str, inner: str = "contender") -> dict[tuple[str, ...], dict[str, dict[str, str]]]:
    """Group rows by the values of `keys`, then by that of `inner`."""
    found: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), {})[row[inner]] = row
    return found


def number(value: Any) -> str:
    """Format three digits, or all before the point."""
    value = float(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]], text: int) -> str:
    """Format a table whose first `text` columns are text, the others numbers."""
    rule = ["---"] * text + ["---:"] * (len(header) - text)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


if __name__ == "__main__":
    sys.exit(run(main))
