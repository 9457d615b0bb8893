"""Shared parts of benchmark scripts: arguments, device, one line per error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Settings of glibc with which a process keeps the memory that it frees."""


def new_parser(description: str | None, default_dtypes: str) -> argparse.ArgumentParser:
    """Make a parser with the options that all scripts take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", help=f"{', '.join(DTYPES)}; several separated by commas (default: {default_dtypes})")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on cpu (default: 2)")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each contender (default: 15)")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="on cpu: reuse freed memory, as torch does on a GPU; by default glibc gives large blocks back to the "
        "system, and whoever makes large temporaries pays for fresh pages (the script restarts itself for this)",
    )
    parser.add_argument("--quick", action="store_true", help="a few small problems; writes nothing without --output")
    parser.add_argument("--output", type=Path, help="CSV file (default: kernels/bench/results/<what>-<device>.csv)")
    return parser


def prepare(args: argparse.Namespace, what: str) -> torch.device:
    """Check the shared options, apply them, and fill in `args.output`.

    Raises:
        ValueError: An option has a value that cannot be used.
    """
    for name in ("threads", "repeats", "batch"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda asks for a CUDA device and torch sees none; use --device cpu")
    if args.output is None and not args.quick:
        args.output = RESULTS / f"{what}-{args.device}{'-kept' if args.keep_memory else ''}.csv"
    if args.output is not None and args.output.suffix != ".csv":
        raise ValueError(f"--output must end with .csv; got {args.output}")
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    else:
        # Convolutions in float32 are TF32 by default, whose error can exceed the bounds of the comparisons.
        torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    return torch.device(args.device)


def keeps_memory() -> bool:
    """Return whether this process was started with `KEEP_MEMORY`."""
    return KEEP_MEMORY.items() <= os.environ.items()


def choose(option: str, value: str, known: Iterable[str]) -> list[str]:
    """Return the names in a comma-separated value, in its order.

    Raises:
        ValueError: One of them is not known, or there is none.
    """
    known = list(known)
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise ValueError(f"{option} names nothing; it takes any of {', '.join(known)}, separated by commas")
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{option} takes any of {', '.join(known)}; got {name!r}{hint}")
    return names


def first_line(failure: Exception) -> str:
    """Return the first line of a message, or the kind of the failure if it has none."""
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]


def run(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Run a script and return its exit status; print a ValueError, which bad arguments raise, as one line."""
    if "--keep-memory" in sys.argv and not keeps_memory():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | KEEP_MEMORY)
    try:
        return main(argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
