"""Run problems with compiled kernels in the emulator: `python -m tests.kernels.ptx --arch sm_90 --dtype bfloat16`.

Prints a line per problem, compared with the float64 reference, and fails if one is wrong, leaves its tensors or races.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from unittest.mock import patch

import torch

from tests.kernels.drawn_problems import draw_problem
from tests.kernels.ptx.launch import emulated
from tests.kernels.ptx.problems import NAN, PROBLEMS, TILES
from tests.kernels.reach import assert_reaches_who_sees
from visionattn_kernels import Window, testing
from visionattn_kernels.attention import triton as backend
from visionattn_kernels.attention.triton import tuning
from visionattn_kernels.testing import assert_matches_reference, make_inputs, run_with_gradients

TF32_ERROR = 4e-3
"""Error of products of tf32, relative to the largest value."""

DTYPES = ("float32", "tf32", "tf32x3", "float16", "bfloat16")


def check(name: str, dtype: torch.dtype) -> None:
    """Compare one problem with the reference; `nan-q` puts NaN into q, see also below."""
    if name == "far":
        check_far_rows(dtype)
    elif name.startswith("drawn-"):
        check_drawn(int(name.removeprefix("drawn-")))
    elif name.startswith("nan-"):
        window, spoilt = Window.neighborhood(5, 2, boundary="mask"), name.removeprefix("nan-")
        inputs = make_inputs(window, (12, 14), batch=1, head_dim=16, rpb=True, rel=spoilt == "k", dtype=dtype)
        tolerance = max(1e-4, 10 * testing.TINY[dtype])
        assert_reaches_who_sees(window, inputs, "triton", spoilt, tolerance=tolerance)
    else:
        window, size, options = PROBLEMS[name]
        assert_matches_reference(window, make_inputs(window, size, **{"batch": 1, **options}), "triton", dtype)


def check_drawn(seed: int) -> None:
    """Compare a random problem, of a dtype and tile of its own, with the reference: `drawn-7`."""
    drawn = draw_problem(seed, max_steps=60)
    inputs = make_inputs(drawn.window, drawn.size, **drawn.options)
    slack = 8 if drawn.dtype == torch.float32 else 20  # as in the interpreter's test
    with patch.object(tuning, "run", lambda kind, problem, launch: launch(drawn.tile)):
        assert_matches_reference(drawn.window, inputs, "triton", drawn.dtype, drawn.scale, slack)


def check_far_rows(dtype: torch.dtype) -> None:
    """Compare rows that are 2^30 numbers apart with the same side by side; most of the memory is never there."""
    window, shape = Window.neighborhood(3), (1, 3, 2, 1, 8)
    far = {x: torch.empty(2**31 + 16, dtype=dtype).as_strided(shape, (0, 2**30, 8, 8, 1)).normal_() for x in "qkv"}
    near = run_with_gradients(window, {name: x.contiguous() for name, x in far.items()}, "triton")
    for name, x in run_with_gradients(window, far, "triton").items():
        assert torch.equal(x, near[name]), f"{name} depends on how far the rows are apart"


def main() -> int:
    """Run the problems that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.ptx", description=__doc__)
    parser.add_argument("--arch", default="sm_90", choices=["sm_80", "sm_90"])
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--tiles", default="default", choices=TILES)
    parser.add_argument("--problems", nargs="*", default=[*PROBLEMS, *(f"nan-{name}" for name in NAN), "far"])
    parser.add_argument("--trace", action="store_true", help="print where a failure was raised")
    parser.add_argument("--without", help="an instruction that is left out, to see that it is missed")
    options = parser.parse_args()
    is_tf32, tile, failures = options.dtype.startswith("tf32"), TILES[options.tiles], 0
    dtype, precision = (torch.float32, options.dtype) if is_tf32 else (getattr(torch, options.dtype), "ieee")
    if options.dtype == "tf32":
        testing.TINY[torch.float32] = TF32_ERROR
    if tile is not None:
        tuning.run = lambda kind, problem, launch: launch(tile)
    for name in options.problems:
        start = time.perf_counter()
        try:
            # The backend takes tensors of the CPU if it thinks itself interpreted.
            with patch.object(backend, "INTERPRETED", True), emulated(options.arch, precision, options.without) as run:
                check(name, dtype)
            print("ok", name, *run, f"{time.perf_counter() - start:.1f} s", flush=True)
        except Exception as error:
            failures += 1
            notes = "; ".join(getattr(error, "__notes__", []))
            print("FAILED", name, f"{type(error).__name__}: {error}", notes, flush=True)
            if options.trace:
                traceback.print_exc()
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
