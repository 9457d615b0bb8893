"""Check outputs and all gradients of named and of random problems on a device, with torch alone.

    python -m kernels.bench.smoke --device cuda
    python -m kernels.bench.smoke --device cuda --random 200 --seed 1

Each problem runs in every dtype with the backend that this library chooses, on CUDA with triton. The bound is `SLACK`
times the error of the eager reference in the same dtype, more than in the tests: some gradients of random problems
vanish, and chance decides how exactly. It takes a minute and no pytest; `pytest -m gpu` is thorough. The script ends
with status 1 if a result is wrong or a kernel does not run.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

from kernels.bench.report import Report
from kernels.bench.script import DTYPES, choose, first_line, new_parser, prepare, run
from visionattn_kernels import Window, explain
from visionattn_kernels.testing import assert_matches_reference, make_inputs

Options = dict[str, Any]
Check = tuple[str, Window, tuple[int, int], Options]

# name: window, map, and what else the inputs hold
NAMED: dict[str, tuple[Window, tuple[int, int], Options]] = {
    "stage 3 of NAT-Tiny": (Window.neighborhood(7), (14, 14), {"head_dim": 32, "rpb": True}),
    "stage 2 of DiNAT-Tiny": (Window.neighborhood(7, dilation=4), (28, 28), {"head_dim": 32, "rpb": True}),
    "v narrower than q": (Window.neighborhood(5), (12, 10), {"head_dim": 48, "v_dim": 16, "rpb": True}),
    "masked halo": (Window.halo(8, 3), (16, 12), {"head_dim": 16, "rel": True}),
    "zeros beyond the border": (Window.halo(8, 3, "zero"), (12, 9), {"head_dim": 64, "rel": True, "num_extra": 1}),
    "every bias": (Window.neighborhood(7), (40, 40), {"head_dim": 48, "rpb": True, "rel": True}),
    "causal sequence": (Window.sequence(64, is_causal=True), (1, 300), {"head_dim": 128}),
    "widest heads": (Window.neighborhood(9), (20, 18), {"head_dim": 256, "heads": 1}),
}
SLACK = 8.0
HEAD_DIMS = (8, 16, 24, 32, 48, 64, 80, 96, 128)


def main(argv: list[str] | None = None) -> int:
    """Run the checks; return exit status 0 if all results are right."""
    parser = new_parser(__doc__, "all")
    parser.add_argument("--random", type=int, help="random problems beside those with names (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the random problems (default: 0)")
    args = parser.parse_args(argv)
    args.quick, quick = True, args.quick  # there are no rows to write
    device = prepare(args, "smoke")
    dtypes = choose("--dtype", args.dtype or ",".join(DTYPES), DTYPES)
    count = (2 if quick else 40) if args.random is None else args.random
    rng = random.Random(args.seed)
    checks = [(name, *rest) for name, rest in NAMED.items()][: 1 if quick else None]
    checks += [draw(rng, f"random {number}", 8 if quick else 40) for number in range(count)]
    origin = Report(None, device, ()).origin
    print(f"{origin['hardware']['name']}; " + ", ".join(f"{name} {x}" for name, x in origin["versions"].items()))
    if device.type == "cuda" and (reason := why_not_triton(device)):
        print(f"error: triton is not chosen on {origin['hardware']['name']}: {reason}", file=sys.stderr)
        return 1
    wrong = [name for dtype in dtypes for name in find_wrong(checks, device, DTYPES[dtype])]
    print(f"{len(checks) * len(dtypes) - len(wrong)} of {len(checks) * len(dtypes)} checks passed")
    return int(bool(wrong))


def why_not_triton(device: torch.device) -> str | None:
    """Return what `explain` says if triton is not the backend of a plain problem; None if it is."""
    q = torch.ones(1, 8, 8, 1, 32, device=device, dtype=torch.bfloat16)
    said = explain(q, q, q, Window.neighborhood(3)).splitlines()
    return None if said[0].startswith("triton") else " / ".join(said)


def draw(rng: random.Random, name: str, longest: int) -> Check:
    """Draw a window, a map of at most `longest` rows and columns, and the tensors of a problem."""
    boundary = rng.choice(("shift", "shift", "mask", "zero"))
    kernel, stride, dilation, causal = [], [], [], []
    for _ in range(2):
        kernel.append(rng.randint(1, 9))
        stride.append(rng.choice((1, 1, rng.randint(1, kernel[-1]))))
        dilation.append(rng.choice((1, 1, rng.randint(1, 4))))
        causal.append(rng.random() < 0.15)
    window = Window((kernel[0], kernel[1]), (stride[0], stride[1]), (dilation[0], dilation[1]), (causal[0], causal[1]))
    window = Window(window.kernel_size, window.stride, window.dilation, window.is_causal, boundary)
    options = {
        "batch": rng.randint(1, 3),
        "heads": rng.randint(1, 4),
        "head_dim": rng.choice(HEAD_DIMS),
        "v_dim": rng.choice((None, None, rng.choice(HEAD_DIMS))),
        "rpb": rng.random() < 0.5,
        "rel": rng.random() < 0.3,
        "num_extra": rng.choice((0, 0, 0, rng.randint(1, 20))),
    }
    return name, window, (rng.randint(1, longest), rng.randint(1, longest)), options


def find_wrong(checks: list[Check], device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return the names of the checks that fail in a dtype, and print why."""
    wrong = []
    for name, window, size, options in checks:
        try:
            inputs = make_inputs(window, size, **options, dtype=torch.float32, device=str(device))
            assert_matches_reference(window, inputs, None, dtype, slack=SLACK)
        except Exception as failure:
            print(f"error: {name}, {dtype}, map {size}, {options}: {first_line(failure)}", file=sys.stderr)
            wrong.append(name)
    return wrong


if __name__ == "__main__":
    sys.exit(run(main))
