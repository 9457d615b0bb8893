"""The compiled kernels' PTX, run in an emulator: what the compiler made of them, beyond Triton's interpreter."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


def run_problems(*arguments: str) -> list[str]:
    """Return the lines of problems that failed; kernels of the interpreter and compiled ones need two processes."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.ptx", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "ok " in done.stdout or "FAILED" in done.stdout, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("ok ")]


@pytest.mark.slow
def test_one_problem_matches_reference() -> None:
    assert not run_problems("--arch", "sm_90", "--dtype", "bfloat16", "--problems", "H12xW10-k5-d48-v16-rpb")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_kernels_match_reference_without_races(arch: str, dtype: str) -> None:
    assert not run_problems("--arch", arch, "--dtype", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", ["one-warp", "four-warps", "eight-warps"])
def test_tiles_match_reference_without_races(tiles: str) -> None:
    problems = ["H40xW40-k7-d48-rpb-rel", "mask-H24xW16-b8h3-d16-rel", "H10xW10-k3-d24-v40-rpb-rel-extra70"]
    assert not run_problems("--dtype", "bfloat16", "--tiles", tiles, "--problems", *problems)
