"""Compile the Triton kernels for a GPU that is not there, and print what the compiler made of them.

    python -m kernels.bench.compile_report                                   # sm_90, all problems
    python -m kernels.bench.compile_report --only "nat-tiny-1 " --kernels attend,by_key --dtype bfloat16
    python -m kernels.bench.compile_report --only "h2 c32 k7 d1 rpb" --tile 8x4/8x4/1/2
    python -m kernels.bench.compile_report --only "h2 c32 k7 d1 rpb" --kernels attend --sweep 12
    python -m kernels.bench.compile_report --write                           # results/compile-sm_90.csv
    python -m kernels.bench.compile_report --check --only nat-tiny-1         # fails if it is worse than that file

How to read a row:

- tile: queries/keys/warps/stages, and /registers if the tile bounds them; as --tile takes it.
- registers, stack, smem: per thread, bytes per thread, bytes of shared memory per program. Stack is spilled registers.
- ctas: programs on a multiprocessor at a time, by registers, shared memory and warps. Few warps hide no latency.
- per_score: instructions of the innermost loop that walks over keys or queries, per score. A turn of the loop has
  queries x keys scores, masked ones too. An instruction counts once for each thread, and both sides of a branch count;
  least is the shortest way through the loop, without masks where the kernel leaves them out.
  A kernel walks again, by selection, if its result holds NaN; that second loop is not counted.
- tensor ... other: per_score by kind, see `assembly.KINDS`. local is traffic of spilled registers. One mufu is the
  exponential of the score itself.
- visited: scores that programs compute for each one that the window asks for (of by_offset as if it walked as
  by_query does).
- per_useful: instructions for each score that the window asks for: visited times per_score, or times least in
  rectangles of which no score is masked.
- core: instruction of the tensor cores, or none; "serial" where the compiler waits for each HGMMA before the next.
- loads: loads from global memory in the loop, as number x bytes; 16 is best.
- warnings: codes of ptxas. C7510 to C7515 say that HGMMA are serial, C7517 and C7519 that it adds waits for them.
- seconds: of the compilation, on the machine that wrote the row.
- estimate_ms, bound: for the batch of the problem's name, on one A100 or H100, and what bounds it; see `estimate`. No
  clock has confirmed it.

float32 is compiled with IEEE products, as torch computes by default; --precision chooses another. Compiled kernels are
kept in Triton's own cache (`TRITON_CACHE_DIR`), so that a second run is fast.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kernels.bench import amdgcn, assembly, estimate, sass
from kernels.bench.compile_problems import compiled_problems, make_problem
from kernels.bench.offline import ARCHS, Arch, Compiled, compile_kernels
from kernels.bench.problems import Problem
from kernels.bench.report import Report, Row, read_rows
from kernels.bench.script import DTYPES, RESULTS, choose, run
from visionattn_kernels.attention import problem as attention
from visionattn_kernels.attention.triton import tuning
from visionattn_kernels.attention.triton.plan import Tile

NAMES = {"attend": "forward", "by_query": "query", "by_key": "key", "by_token": "token", "by_offset": "offset"}
"""Kinds of kernels by the name of the function."""

WIDTHS = {
    "kernel": 9,
    "tile": 16,
    "registers": 4,
    "stack": 5,
    "smem": 6,
    "ctas": 4,
    "per_score": 6,
    "least": 6,
    **dict.fromkeys(assembly.KINDS, 6),
    "visited": 5,
    "per_useful": 6,
    "core": 12,
    "loads": 16,
    "warnings": 8,
    "seconds": 5,
    "estimate_ms": 8,
    "bound": 6,
    "error": 5,
}
"""Columns with their widths in print."""

COLUMNS = ("arch", "problem", "dtype", *WIDTHS)

KEY = ("problem", "dtype", "kernel")
"""Columns that name a row of the table of one GPU."""

FLOAT32 = ("nat-tiny-1 ", "halonet B128 64x64 h2 c64 b8 h3 rel", "na2d B1 256x256 h24 c128 w80", "every-bias")
"""Beginnings of the names of problems that are also compiled for float32."""

GROWTH = 1.2
"""How many times the instructions of the table a kernel may have."""

STACK = 16
"""Bytes of stack that a kernel may have beyond the table: releases of Triton differ by as much."""


class CompileReport(Report):
    """Rows that name the GPU that they are compiled for, not the machine that compiles."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, torch.device("cpu"), COLUMNS)
        self.common, self.columns = {}, list(COLUMNS)


def main(argv: list[str] | None = None) -> int:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90", help=f"{', '.join(ARCHS)} (default: sm_90)")
    parser.add_argument(
        "--dtype", help=f"{', '.join(DTYPES)}; several separated by commas (default: bfloat16, few also float32)"
    )
    parser.add_argument("--only", default="", help="part of a problem's name; several separated by commas")
    parser.add_argument("--kernels", default=",".join(NAMES), help="several separated by commas (default: all)")
    parser.add_argument("--tile", type=read_tile, help="as 8x8/4x16/4/3, see above (default: shipped)")
    parser.add_argument("--sweep", type=int, help="compile so many tiles, and print them by estimate")
    parser.add_argument("--precision", default="ieee", help="of products of float32: ieee, tf32 or tf32x3")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--write", action="store_true", help="write results/compile-<arch>.csv")
    parser.add_argument(
        "--check", action="store_true", help="fail if a kernel is worse than in results/compile-<arch>.csv"
    )
    parser.add_argument("--output", type=Path, help="CSV file to write")
    args = parser.parse_args(argv)
    (arch,) = choose("--arch", args.arch, ARCHS)
    kinds = [NAMES[name] for name in choose("--kernels", args.kernels, NAMES)]
    cases = [x for x in compiled_problems() if any(part.strip() in x.name for part in args.only.split(","))]
    if not cases:
        raise ValueError(f"--only {args.only!r} fits no problem; it takes part of a name, such as nat-tiny-1")
    asked = choose("--dtype", args.dtype, DTYPES) if args.dtype else None
    work = [(case, dtype) for case in cases for dtype in asked or default_dtypes(case)]
    compute: Callable[[tuple[Problem, str]], list[Row]] = partial(
        partial(sweep, number=args.sweep) if args.sweep else partial(compute_rows, tile=args.tile),
        arch=arch,
        kinds=kinds,
        precision=args.precision,
    )
    report = CompileReport(args.output or (RESULTS / f"compile-{arch}.csv" if args.write else None))
    print(show_cells({name: name[:width] for name, width in WIDTHS.items()}))
    for rows in _map(compute, work, args.jobs):
        print("{problem}  {dtype}  {arch}".format(**rows[0]))
        for row in rows:
            print(show_cells(row), flush=True)
        report.add(rows)
    if args.check:
        worse = find_worse(report.rows, read_rows(RESULTS / f"compile-{arch}.csv"))
        if worse:
            raise ValueError("; ".join(worse))
    return 0


def find_worse(rows: Iterable[Row], before: Iterable[Row]) -> list[str]:
    """Say what is worse than before: more stack, lost or serial tensor cores, more instructions (see `GROWTH`)."""
    known = {tuple(row[name] for name in KEY): row for row in before}
    found = []
    for row in rows:
        key = tuple(row[name] for name in KEY)
        old, name = known.get(key), " ".join(key)
        if old is None:
            found.append(f"{name}: not in the table; write it with --write")
        elif row["error"]:
            found += [f"{name}: {row['error']}"] if not old["error"] else []
        elif not old["error"]:
            if int(row["stack"]) > int(old["stack"]) + STACK:
                found.append(f"{name}: spills {row['stack']} bytes of registers per thread, before {old['stack']}")
            if row["core"] != old["core"] and (row["core"] == "none" or "serial" in row["core"]):
                found.append(f"{name}: tensor cores {row['core']}, before {old['core']}")
            if float(row["per_useful"]) > GROWTH * float(old["per_useful"]):
                found.append(f"{name}: {row['per_useful']} instructions per useful score, before {old['per_useful']}")
    return found


def default_dtypes(case: Problem) -> list[str]:
    """Return the dtypes that a problem is compiled for; few are of interest in float32."""
    return ["bfloat16", "float32"] if case.name.startswith(FLOAT32) else ["bfloat16"]


def _map(compute: Callable[[Any], list[Row]], work: list[Any], jobs: int) -> Iterator[list[Row]]:
    """Yield what is computed that holds a row, in the order of the work."""
    if jobs == 1:
        yield from filter(None, map(compute, work))
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from filter(None, pool.map(compute, work))


def read_tile(text: str) -> Tile:
    """Read a tile as QUERIES/KEYS/WARPS/STAGES, with its bound of registers if it has one."""
    found = re.fullmatch(r"(\d+)x(\d+)/(\d+)x(\d+)/(\d+)/(\d+)(?:/(\d+))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be like 8x8/4x16/4/3; got {text!r}")
    a, b, c, d, warps, stages, registers = (int(x or 0) for x in found.groups())
    return Tile((a, b), (c, d), warps, stages, registers)


def show_tile(tile: Tile) -> str:
    """Write a tile as `read_tile` reads it."""
    (a, b), (c, d) = tile.query, tile.key
    bound = f"/{tile.max_registers}" if tile.max_registers else ""
    return f"{a}x{b}/{c}x{d}/{tile.num_warps}/{tile.num_stages}{bound}"


def show_cells(row: Row) -> str:
    """Write a row for people."""
    cells = ((row.get(name, ""), width) for name, width in WIDTHS.items())
    return " ".join((f"{x:.2f}" if isinstance(x, float) else str(x)).rjust(width) for x, width in cells)


def compute_rows(
    work: tuple[Problem, str], arch: str, kinds: Iterable[str], tile: Tile | None, precision: str
) -> list[Row]:
    """Return a row per kernel of a problem and dtype."""
    case, dtype = work
    problem = make_problem(case, DTYPES[dtype])
    same = {"arch": arch, "problem": case.name, "dtype": dtype}
    rows: list[Row] = []
    for name, kind in NAMES.items():
        if kind not in kinds:
            continue
        try:
            compiled = compile_kernels(problem, arch, (kind,), tile, precision)
        except Exception as error:  # a kernel that does not compile is a result
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append({**same, "kernel": name, "error": reason, "tile": show_tile(tile) if tile else ""})
        else:
            rows += [same | describe(x, problem, arch, case.batch, precision) for x in compiled]
    return rows


def sweep(work: tuple[Problem, str], number: int, arch: str, kinds: Iterable[str], precision: str) -> list[Row]:
    """Return the rows of the tiles that `tuning` ranks first, by the estimate of their code."""
    case, dtype = work
    problem = make_problem(case, DTYPES[dtype])
    channels, found = max(estimate.block_dims(problem)), list[Row]()
    for kind in kinds:
        tiles = tuning.rank_tiles(kind, case.window, case.size, channels, problem.q.element_size())[:number]
        rows = [row for tile in tiles for row in compute_rows(work, arch, (kind,), tile, precision)]
        found += sorted(rows, key=lambda row: row.get("estimate_ms", math.inf))
    return found


def describe(compiled: Compiled, problem: attention.Problem, arch: str, images: int, precision: str) -> dict[str, Any]:
    """Return the figures of one kernel, without those of its problem."""
    tile, kernel = compiled.tile, compiled.kernel
    code = sass.read(kernel.asm["cubin"]) if "cubin" in kernel.asm else amdgcn.read(kernel.asm["amdgcn"])
    row: dict[str, Any] = {
        "kernel": compiled.name,
        "tile": show_tile(tile),
        "registers": code.registers,
        "stack": code.stack,
        "smem": kernel.metadata.shared,
        "ctas": count_programs(ARCHS[arch], tile.num_warps, code.registers, kernel.metadata.shared),
        "warnings": " ".join(compiled.warnings),
        "seconds": compiled.seconds,
    }
    walks = assembly.walks(code.instructions)
    if not walks:
        return row | {"error": "no loop with matrix products"}
    walk = code.instructions[slice(*walks[0])]
    scores, threads = math.prod(tile.query) * math.prod(tile.key), tile.num_warps * ARCHS[arch].warp_size
    # The compiler may unroll the loop: it then has the products of several turns.
    expected = estimate.multiplies_per_score(compiled.kind, problem) * scores
    if precision == "tf32x3" and problem.q.dtype == torch.float32:
        expected *= 3
    turns = max(1, round(sum(x.multiplies for x in walk) * tile.num_warps / expected))
    share = threads / scores / turns
    per_score = {kind: assembly.count_kinds(walk)[kind] * share for kind in assembly.KINDS}
    loads = assembly.count_loads(walk)
    total, least = sum(per_score.values()), assembly.shortest_way(walk) * share
    visited, inside = estimate.count_visited(compiled.kind, problem, tile)
    issued = total + (least - total) * inside / visited
    factor = visited / estimate.count_useful(compiled.kind, problem)
    core = assembly.tensor_core(walk, turns * sum(estimate.PRODUCTS[compiled.kind]))
    outside = walks[0][0] + len(code.instructions) - walks[-1][1]
    programs = compiled.programs / math.prod(problem.q.shape[:4:3])
    figures = estimate.Figures(
        issued,
        per_score["mufu"],
        sum(n * width for width, n in loads.items() if width >= 8) * share,
        outside * threads * programs,
        core,
    )
    time = estimate.estimate(arch, compiled.kind, problem, images, tile, figures)
    return (
        row
        | per_score
        | {
            "per_score": total,
            "least": least,
            "visited": factor,
            "per_useful": issued * factor,
            "core": core,
            "loads": " ".join(f"{n}x{width}" for width, n in sorted(loads.items(), reverse=True)),
        }
        | ({} if time is None else {"estimate_ms": time[0], "bound": time[1]})
    )


def count_programs(arch: Arch, num_warps: int, registers: int, shared: int) -> int:
    """Return how many programs of a kernel run on one multiprocessor at a time."""
    warps = arch.registers // (-(-registers // 8) * 8 * arch.warp_size)
    if arch.backend == "cuda":
        warps = warps // 4 * 4  # by scheduler
    by_shared = arch.shared // max(1, shared + arch.reserved)
    return min(min(warps, arch.warps) // num_warps, by_shared, arch.programs)


if __name__ == "__main__":
    sys.exit(run(main))
