"""Compile the Triton kernels for a GPU that is not there, and print what the compiler made of them.

    python -m kernels.bench.compile_report                                  # sm_90, bfloat16 and float32, few problems
    python -m kernels.bench.compile_report --only "nat-tiny-1" --kernels attend,by_key --dtype bfloat16
    python -m kernels.bench.compile_report --only "d1 rpb" --tile 8x4/8x4/1/2   # queries/keys/warps/stages
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import re
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
import triton

from kernels.bench import problems, sass
from kernels.bench.offline import ARCHS, Arch, Compiled, compile_kernels, empty_inputs
from kernels.bench.script import DTYPES, choose, run
from visionattn_kernels import Window
from visionattn_kernels.attention.problem import Problem
from visionattn_kernels.attention.triton.plan import Tile
from visionattn_kernels.window import AxisWindow, tabulate_axis

NAMES = {"attend": "forward", "by_query": "query", "by_key": "key", "by_token": "token", "by_offset": "offset"}
"""Kinds of kernels by the name of the function."""

PRODUCTS = {"forward": (1, 1), "query": (2, 1), "key": (2, 2), "token": (2, 2), "offset": (1, 1)}
"""Multiply-adds of a score, in head dims of keys and of values."""

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90", help=f"{', '.join(ARCHS)}; several separated by commas")
    parser.add_argument("--dtype", default="bfloat16,float32", help=f"{', '.join(DTYPES)}; several separated by commas")
    parser.add_argument("--only", default="", help="part of a problem's name; several separated by commas")
    parser.add_argument("--kernels", default=",".join(NAMES), help="several separated by commas")
    parser.add_argument("--tile", type=read_tile, help="QUERIES/KEYS/WARPS/STAGES, as 8x8/4x16/4/3 (default: shipped)")
    parser.add_argument("--precision", default="ieee", help="of products of float32: ieee, tf32 or tf32x3")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args(argv)
    archs, dtypes = choose("--arch", args.arch, ARCHS), choose("--dtype", args.dtype, DTYPES)
    kinds = [NAMES[name] for name in choose("--kernels", args.kernels, NAMES)]
    cases = [x for x in compiled_problems() if any(part.strip() in x.name for part in args.only.split(","))]
    work = [(case, dtype, arch) for arch in archs for case in cases for dtype in dtypes]
    compute = partial(compute_rows, kinds=kinds, tile=args.tile, precision=args.precision)
    if args.jobs > 1:
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
            print_rows(pool.map(compute, *zip(*work, strict=True)))
    else:
        print_rows(compute(*args) for args in work)
    return 0


def compiled_problems() -> list[problems.Problem]:
    """Return the problems that are compiled."""
    found = [
        x
        for x in problems.attention_problems(torch.device("cuda"), None, quick=False)
        if re.match(r"nat-tiny-1 .*(d1|d1 rpb|d8 rpb)$|nat-tiny-2 .* d1 rpb|na1d|na2d .*w80$|halonet-layer", x.name)
    ]
    for boundary in ("zero", "mask"):
        window = Window.halo(8, 3, boundary)
        found.append(problems.HaloLayer(f"halonet-layer B128 64x64 h2 c64 b8 h3 {boundary}", window, (64, 64), 128, 2, 64))
    return found


def read_tile(text: str) -> Tile:
    """Read a tile as QUERIES/KEYS/WARPS/STAGES."""
    found = re.fullmatch(r"(\d+)x(\d+)/(\d+)x(\d+)/(\d+)/(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be like 8x8/4x16/4/3; got {text!r}")
    a, b, c, d, warps, stages = map(int, found.groups())
    return Tile((a, b), (c, d), warps, stages)


def make_problem(case: problems.Problem, dtype: torch.dtype) -> Problem:
    """Return a problem of the kernels with tensors that nobody may read; a kernel does not depend on the batch."""
    maps = (min(case.batch, 2), *case.size, case.heads, case.head_dim)
    queries = (maps[0], *case.window.num_queries(case.size), case.heads)
    tables = [2 * k - 1 for k in case.window.kernel_size]
    shapes: dict[str, tuple[int, ...]] = {"q": (*queries, case.head_dim), "k": maps, "v": maps}
    if case.rpb:
        shapes["rpb"] = (case.heads, *tables)
    if isinstance(case, problems.HaloLayer):
        shapes |= {"rel_h": (*queries, tables[0]), "rel_w": (*queries, tables[1])}
    return Problem(**empty_inputs(shapes, dtype), window=case.window, scale=case.head_dim**-0.5)


def compute_rows(
    case: problems.Problem, dtype: str, arch: str, kinds: Iterable[str], tile: Tile | None, precision: str
) -> list[Row]:
    """Return a row per kernel of a problem."""
    problem = make_problem(case, DTYPES[dtype])
    same = {"arch": arch, "problem": case.name, "dtype": dtype}
    rows = []
    for kind in kinds:
        try:
            rows += [same | describe(x, problem, arch) for x in compile_kernels(problem, arch, [kind], tile, precision)]
        except Exception as error:  # a tile that does not compile is a result
            name = next(name for name, other in NAMES.items() if other == kind)
            reason = str(error).splitlines()[0] if str(error) else ""
            rows.append({**same, "kernel": name, "error": f"{type(error).__name__}: {reason}"})
    return rows


def describe(compiled: Compiled, problem: Problem, arch: str) -> Row:
    """Return the figures of one kernel."""
    tile = compiled.tile
    code, usage = sass.disassemble(compiled.kernel.asm["cubin"])
    shared = compiled.kernel.metadata.shared
    row: Row = {
        "kernel": compiled.name,
        "tile": show_tile(tile),
        "registers": usage.registers,
        "stack": usage.stack,
        "shared": shared,
        "ctas": programs_per_multiprocessor(ARCHS[arch], tile.num_warps, usage.registers, shared),
    }
    walks = sass.loops(code)
    if walks:
        walk = walks[0]
        scores = math.prod(tile.query) * math.prod(tile.key)
        lanes = tile.num_warps * ARCHS[arch].warp_size
        dims = [max(16, triton.next_power_of_2(x.shape[-1])) for x in (problem.k, problem.v)]
        expected = sum(n * d for n, d in zip(PRODUCTS[compiled.kind], dims, strict=True)) * scores
        turns = max(1, round(sass.products(walk) * tile.num_warps / expected))
        per_score = {kind: n * lanes / scores / turns for kind, n in sass.count_kinds(walk).items()}
        factor = visited(compiled.kind, problem, tile) / useful(compiled.kind, problem)
        row |= {kind: per_score.get(kind, 0.0) for kind in sass.KINDS}
        row |= {
            "per_score": sum(per_score.values()),
            "visited": factor,
            "per_useful": sum(per_score.values()) * factor,
            "tensor_core": sass.tensor_core(walk),
            "loads": " ".join(f"{n}x{width}" for width, n in sorted(sass.load_widths(walk).items(), reverse=True)),
        }
    return row | {"warnings": " ".join(compiled.warnings), "seconds": compiled.seconds}


def show_tile(tile: Tile) -> str:
    """Write a tile as `read_tile` reads it."""
    (a, b), (c, d) = tile.query, tile.key
    return f"{a}x{b}/{c}x{d}/{tile.num_warps}/{tile.num_stages}"


def programs_per_multiprocessor(arch: Arch, num_warps: int, registers: int, shared: int) -> int:
    """Return how many programs of a kernel run on one multiprocessor at a time."""
    warps = -(-num_warps // 4) * 4 if num_warps > 2 else num_warps
    by_registers = 65536 // (warps * -(-registers // 8) * 8 * 32)
    by_shared = arch.shared // (shared + arch.reserved)
    return min(by_registers, by_shared, 64 // num_warps, 32)


def useful(kind: str, problem: Problem) -> int:
    """Count the scores of one image and head that the rule asks for."""
    if kind == "token":
        assert problem.extra_k is not None
        return math.prod(problem.q.shape[1:3]) * problem.extra_k.shape[1]
    return problem.window.count_pairs(problem.size)


def visited(kind: str, problem: Problem, tile: Tile) -> int:
    """Count the scores of one image and head that programs compute, masked ones too."""
    area = math.prod(tile.query) * math.prod(tile.key)
    if kind == "token":
        assert problem.extra_k is not None
        queries = -(-math.prod(problem.q.shape[1:3]) // math.prod(tile.query))
        return queries * -(-problem.extra_k.shape[1] // math.prod(tile.key)) * area
    pairs = 1
    for axis, length, query, key in zip(problem.window.axes, problem.size, tile.query, tile.key, strict=True):
        pairs *= rectangles(axis, length, query, key, kind == "key")
    return pairs * area


def rectangles(axis: AxisWindow, length: int, query: int, key: int, by_key: bool) -> int:
    """Count the stretches that the tiles of one axis walk over.

    Args:
        axis: The rule.
        length: Keys of the axis.
        query: Queries of a tile or, with `by_key`, of a stretch.
        key: Keys of a stretch or, with `by_key`, of a tile.
        by_key: Whether tiles hold keys.
    """
    t = tabulate_axis(axis, length, torch.device("cpu"))
    size, step = (key, query) if by_key else (query, key)
    total = 0
    for group in range(min(axis.dilation, length)):
        if by_key:
            starts, stops = t.query_start[group :: axis.dilation], t.query_stop[group :: axis.dilation]
        else:
            first, count = int(t.first_query[group]), int(t.queries[group])
            starts, stops = (x[first :: t.query_step][:count] for x in (t.start, t.stop))
        for i in range(0, len(starts), size):
            span = int(stops[min(i + size, len(stops)) - 1]) - int(starts[i])
            total += -(-max(0, span) // step)
    return total


COLUMNS = {
    "kernel": 9,
    "tile": 16,
    "registers": 4,
    "stack": 5,
    "shared": 6,
    "ctas": 4,
    "per_score": 6,
    **dict.fromkeys(sass.KINDS, 6),
    "visited": 5,
    "per_useful": 6,
    "tensor_core": 6,
    "loads": 10,
    "warnings": 8,
    "seconds": 5,
}
"""Columns of the printed table with their widths."""


def print_rows(parts: Iterable[Iterable[Row]]) -> None:
    """Print a table, each problem as soon as it is done."""
    print(" ".join(name[:width].rjust(width) for name, width in COLUMNS.items()))
    for rows in parts:
        for i, row in enumerate(rows):
            if i == 0:
                print(f"{row['problem']}  {row['dtype']}  {row['arch']}")
            print(show_row(row), flush=True)


def show_row(row: Mapping[str, Any]) -> str:
    """Write a row."""
    if "error" in row:
        return f"{row['kernel']:>9} {row['error']}"
    cells = ((row.get(name, ""), width) for name, width in COLUMNS.items())
    return " ".join((f"{x:.2f}" if isinstance(x, float) else str(x)).rjust(width) for x, width in cells)


if __name__ == "__main__":
    sys.exit(run(main))
