"""The compiled kernels' PTX, run in an emulator: what the compiler made of them, beyond Triton's interpreter."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

pytestmark = pytest.mark.slow

FEW = [
    "H9xW8-k5x3-dil2x3-rpb-rel",
    "H12xW10-k5-d48-v16-rpb",
    "H14xW14-k7-d32-rpb",
    "mask-H16xW12-b8h3-rel",
    "H10xW10-k3-d24-v40-rpb-rel-extra70",
    "nan-v",
    "nan-k",
]


def run_problems(*arguments: str) -> list[str]:
    """Return the lines of problems that failed; kernels of the interpreter and compiled ones need two processes."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.ptx", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("ok ")]


@pytest.mark.parametrize(("arch", "dtype"), [("sm_80", "float32"), ("sm_90", "bfloat16")])
def test_kernels_match_reference_without_races(arch: str, dtype: str) -> None:
    assert not run_problems("--arch", arch, "--dtype", dtype)


@pytest.mark.parametrize("tiles", ["one-warp", "four-warps", "eight-warps"])
@pytest.mark.parametrize(
    ("arch", "dtype"), [("sm_80", "bfloat16"), ("sm_80", "tf32x3"), ("sm_90", "float16"), ("sm_90", "tf32")]
)
def test_tiles_match_reference_without_races(arch: str, dtype: str, tiles: str) -> None:
    assert not run_problems("--arch", arch, "--dtype", dtype, "--tiles", tiles, "--problems", *FEW)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_drawn_problems_match_reference_without_races(arch: str) -> None:
    assert not run_problems("--arch", arch, "--problems", *(f"drawn-{seed}" for seed in range(1000, 1020)))


@pytest.mark.parametrize("what", ["bar.sync", "fence.proxy.async", "cp.async.wait_group", "wgmma.wait_group"])
def test_instruction_left_out_is_a_race(what: str) -> None:
    (failure,) = run_problems("--without", what, "--tiles", "four-warps", "--problems", "H14xW14-k7-d32-rpb")
    assert "RaceError" in failure
