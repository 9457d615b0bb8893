"""The report of compiled kernels: how it reads machine code and counts scores, and when it finds a kernel worse."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from visionattn_kernels import Window

pytest.importorskip("triton")

from kernels.bench import amdgcn, assembly, compile_problems, compile_report, estimate, offline, sass
from kernels.bench.report import read_rows
from kernels.bench.script import RESULTS
from visionattn_kernels.attention.triton.plan import Tile

ROOT = Path(__file__).parents[2]

# An outer loop with an inner one that multiplies; a load before both.
AMD = """
\tglobal_load_dwordx4 v[0:3], v[4:5], off
.LBB0_1:
\tv_add_u32_e32 v1, v2, v3
.LBB0_2:
\tds_read_b128 v[0:3], v4
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[0:1], v[2:3], v[0:15]
\tv_exp_f32_e32 v1, v2
\tglobal_load_dword v3, v[4:5], off
\ts_cbranch_scc1 .LBB0_2
\ts_cbranch_vccnz .LBB0_1
\ts_endpgm
  - .agpr_count:     0
    .private_segment_fixed_size: 24
    .vgpr_count:     200
"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("HGMMA.64x64x16.F32.BF16", "tensor"),
        ("HMMA.16816.F32.BF16", "tensor"),
        ("UTCHMMA", "tensor"),
        ("MUFU.EX2", "mufu"),
        ("LDGSTS.E.BYPASS.128", "global"),
        ("LDSM.16.M88.4", "shared"),
        ("STL.64", "local"),
        ("SHFL.BFLY", "shuffle"),
        ("IMAD.WIDE", "integer"),
        ("UIADD3", "integer"),
        ("IMAD.MOV.U32", "other"),
        ("FFMA", "float"),
        ("F2FP.BF16.F32.PACK_AB", "float"),
        ("DEPBAR.LE", "other"),
        ("BRA", "other"),
    ],
)
def test_kind_of_a_sass_instruction(name: str, kind: str) -> None:
    assert sass.kind_of(name) == kind


def test_walk_is_the_innermost_loop_with_matrix_products() -> None:
    code = amdgcn.read(AMD)
    assert (code.registers, code.stack) == (200, 24)
    ((start, stop),) = assembly.walks(code.instructions)
    walk = code.instructions[start:stop]
    assert [x.kind for x in walk] == ["shared", "tensor", "mufu", "global", "other"]
    assert sum(x.multiplies for x in walk) == 32 * 32 * 8
    assert assembly.count_loads(walk) == {4: 1}
    assert assembly.tensor_core(walk, 1) == "MFMA"


def test_shortest_way_takes_the_branch_over_the_masks() -> None:
    lines = [("v_add", None), ("s_cbranch_scc1", 3), ("v_cndmask", None), ("v_mfma", None), ("s_cbranch_vccnz", 0)]
    code = [assembly.Instruction(i, name, "", "other", 0, 0, target) for i, (name, target) in enumerate(lines)]
    assert assembly.shortest_way(code) == 4
    code[1] = code[1]._replace(target=None)
    assert assembly.shortest_way(code) == 5


def test_hgmma_are_serial_if_each_is_waited_for() -> None:
    line = assembly.Instruction(0, "HGMMA.64x64x16.F32.BF16", "R24, gdesc[UR20], R24, gsb0", "tensor", 1, 0, None)
    assert assembly.tensor_core([line], 1) == "HGMMA"
    assert assembly.tensor_core([line, line], 1) == "HGMMA serial"
    assert assembly.tensor_core([], 1) == "none"


@pytest.mark.parametrize(
    ("arch", "num_warps", "registers", "shared", "programs"),
    [
        ("sm_90", 4, 124, 0, 4),
        ("sm_90", 4, 255, 0, 2),
        ("sm_90", 8, 215, 0, 1),
        ("sm_90", 4, 124, 100 << 10, 2),
        ("sm_80", 4, 124, 100 << 10, 1),
        ("sm_90", 1, 32, 0, 32),
        ("gfx942", 4, 256, 0, 2),
    ],
)
def test_programs_of_a_multiprocessor(arch: str, num_warps: int, registers: int, shared: int, programs: int) -> None:
    assert compile_report.count_programs(offline.ARCHS[arch], num_warps, registers, shared) == programs


@pytest.mark.parametrize("window", [Window.neighborhood(3, dilation=2), Window.halo(4, 1), Window.halo(4, 1, "zero")])
def test_tiles_of_one_pair_of_axes_visit_what_the_window_asks_for(window: Window) -> None:
    """With one query and one key to a rectangle no score is masked; larger ones compute more."""
    shape = compile_problems.Shape("", window, (9, 8), 1, 1, 16)
    problem = compile_problems.make_problem(shape, torch.float32)
    for kind in ("forward", "key"):
        useful = estimate.count_useful(kind, problem)
        inside = useful
        if window.boundary == "zero" and kind == "key":  # no tile of keys lies beyond the map
            inside = Window.halo(4, 1).count_pairs((9, 8))
        assert estimate.count_visited(kind, problem, Tile((1, 1), (1, 1), 1, 1)) == (inside, inside)
        assert estimate.count_visited(kind, problem, Tile((4, 4), (2, 8), 1, 1))[0] > inside


@pytest.mark.parametrize("registers", [0, 128])
def test_tile_reads_as_it_is_written(registers: int) -> None:
    tile = Tile((8, 4), (2, 16), 4, 3, registers)
    assert compile_report.read_tile(compile_report.show_tile(tile)) == tile


def test_problem_of_a_compilation_has_every_tensor() -> None:
    (case,) = (x for x in compile_problems.compiled_problems() if x.name.startswith(compile_problems.Shape.EVERY))
    problem = compile_problems.make_problem(case, torch.bfloat16)
    assert set(problem.tensors) == {"q", "k", "v", "rpb", "rel_h", "rel_w", "extra_k", "extra_v"}


def committed(arch: str) -> Iterator[dict[str, str]]:
    return (row for row in read_rows(RESULTS / f"compile-{arch}.csv") if not row["error"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stack": "-24"}, "spills 0 bytes of registers per thread, before -24"),
        ({"core": "WGMMA"}, "tensor cores none, before WGMMA"),
        ({"per_useful": "1.5"}, "instructions per useful score, before 1.5"),
        ({"problem": "unknown"}, "not in the table"),
    ],
)
def test_check_finds_what_is_worse(change: dict[str, Any], complaint: str) -> None:
    row = {"problem": "p", "dtype": "float32", "kernel": "attend", "stack": "0", "core": "none", "per_useful": "2"}
    row["error"] = ""
    assert compile_report.find_worse([row], [row]) == []
    (found,) = compile_report.find_worse([row], [row | change])
    assert found.startswith("p float32 attend: ")
    assert complaint in found


def test_check_finds_a_kernel_that_no_longer_compiles() -> None:
    row = next(committed("sm_90"))
    assert compile_report.find_worse([row | {"error": "OutOfResources: shared memory"}], [row])


def test_committed_table_has_all_problems() -> None:
    names = {row["problem"] for row in read_rows(RESULTS / "compile-sm_90.csv")}
    assert names == {x.name for x in compile_problems.compiled_problems()}


@pytest.mark.slow
def test_kernels_are_no_worse_than_the_committed_table() -> None:
    """Tiles of the networks, for which the table was made with Triton 3.6."""
    few = "h2 c32 k7 d1,h2 c32 k7 d8 rpb,h2 c64 b8 h3 rel,na2d B1 256x256 h24 c128 w80,extra"
    command = [sys.executable, "-m", "kernels.bench.compile_report", "--check", "--dtype", "bfloat16", "--only", few]
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
