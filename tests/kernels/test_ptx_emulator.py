"""The PTX emulator itself: small programs whose results, races and refusals are known."""

import numpy as np
import pytest
import torch

from tests.kernels.ptx.formats import UnsupportedError
from tests.kernels.ptx.global_memory import GlobalMemory
from tests.kernels.ptx.group import RaceError
from tests.kernels.ptx.program import Program
from tests.kernels.ptx.tensor_cores import descriptor_offsets, swizzle

HEAD = """
.visible .entry f(
	.param .u64 .ptr .global .align 1 f_param_0,
	.param .u32 f_param_1,
	.param .u64 .ptr .global .align 1 f_param_2,
	.param .u64 .ptr .global .align 1 f_param_3
)
.reqntid {threads}
{{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<99>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [f_param_0];
	ld.param.b32 	%r1, [f_param_1];
	mov.u32 	%r2, %tid.x;
	mov.u32 	%r3, %ctaid.x;
	mad.lo.s32 	%r4, %r3, {threads}, %r2;
	mad.wide.s32 	%rd2, %r4, 4, %rd1;
	mov.b32 	%r5, global_smem;
	shl.b32 	%r6, %r2, 2;
	add.s32 	%r7, %r5, %r6;
	xor.b32 	%r8, %r6, 128;
	add.s32 	%r9, %r5, %r8;
{body}
	ret;
}}
"""


def run(body: str, x: torch.Tensor, number: int = 0, grid: int = 1, threads: int = 64) -> torch.Tensor:
    """Run a body in which `%rd2` is the address of the thread's element of x, and `%r1` a number.

    `%r7` is the address of the thread's word in shared memory, `%r9` that of its neighbour in the next warp.
    """
    program = Program(HEAD.format(body=body, threads=threads))
    program.run(grid, 4096, [x.data_ptr(), number], GlobalMemory([x]))
    return x


def unary(operations: str, values: list[float] | torch.Tensor) -> torch.Tensor:
    """Apply instructions from `%r20` to `%r21` to each value, as its bits."""
    x = torch.as_tensor(values)
    x = torch.cat([x, x.new_zeros(64 - len(x))])
    run(f"ld.global.b32 {{ %r20 }}, [ %rd2 + 0 ];\n{operations}\nst.global.b32 [ %rd2 + 0 ], {{ %r21 }};", x)
    return x[: len(values)]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("operations", "given", "expected"),
    [
        ("max.f32 %r21, %r20, 0f3F800000;", [NAN, 2.0, -INF], [1.0, 2.0, 1.0]),
        ("max.NaN.f32 %r21, %r20, 0f3F800000;", [NAN, 2.0, -INF], [NAN, 2.0, 1.0]),
        ("ex2.approx.ftz.f32 %r21, %r20;", [3.0, -INF, -140.0], [8.0, 0.0, 0.0]),
        ("fma.rn.f32 %r21, %r20, %r20, 0fBF800000;", [1 + 2**-12], [2**-11 + 2**-24]),
        ("setp.neu.f32 %p1, %r20, %r20;\nselp.b32 %r21, 0f3F800000, 0f00000000, %p1;", [NAN, 1.0], [1.0, 0.0]),
        ("setp.ne.f32 %p1, %r20, %r20;\nselp.b32 %r21, 0f3F800000, 0f00000000, %p1;", [NAN, 1.0], [0.0, 0.0]),
        ("cvt.rna.tf32.f32 %r21, %r20;", [1 + 2**-11, 1 + 2**-12], [1 + 2**-10, 1.0]),
        (
            "cvt.rn.bf16x2.f32 %r22, 0f00000000, %r20;\nmov.b32 {%rs1, _}, %r22;\ncvt.f32.bf16 %r21, %rs1;",
            [1 + 2**-8, 1 + 3 * 2**-8, NAN],
            [1.0, 1 + 2**-6, NAN],
        ),
    ],
)
def test_float_instructions(operations: str, given: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(unary(operations, given), torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("operations", "given", "expected"),
    [
        ("div.s32 %r21, %r20, 3;", [7, -7], [2, -2]),
        ("rem.s32 %r21, %r20, 3;", [7, -7], [1, -1]),
        ("shr.s32 %r21, %r20, 40;", [5, -5], [0, -1]),
        ("shr.u32 %r21, %r20, 28;", [5, -1], [0, 15]),
        ("shl.b32 %r21, %r20, 32;", [5], [0]),
        ("bfe.u32 %r21, %r20, 4, 3;", [0x7F], [7]),
        ("bfe.s32 %r21, %r20, 4, 1;", [0x10, 0x20], [-1, 0]),
        ("bfe.s32 %r21, %r20, 30, 8;", [-1, 1 << 30], [-1, 1]),
        ("cvt.s64.s32 %rd3, %r20;\nbfe.u64 %rd3, %rd3, 28, 8;\ncvt.u32.u64 %r21, %rd3;", [-1, 5 << 28], [255, 5]),
        ("shf.l.wrap.b32 %r21, -1, %r20, 36;", [1], [31]),
        ("shf.r.clamp.b32 %r21, %r20, 5, 40;", [-1], [5]),
        ("max.relu.s32 %r21, %r20, -4;", [-7, 2], [0, 2]),
        ("bfi.b32 %r21, %r20, 0, 8, 4;", [0x1F], [0xF00]),
        ("prmt.b32 %r21, %r20, 0, 0x0123U;", [0x01020304], [0x04030201]),
        ("lop3.b32 %r21, %r20, 12, 10, 0xE8;", [6], [14]),
        ("mul.hi.s32 %r21, %r20, %r20;", [1 << 20], [1 << 8]),
        ("cvt.s64.s32 %rd3, %r20;\nmul.hi.u64 %rd3, %rd3, %rd3;\ncvt.u32.u64 %r21, %rd3;", [-1, -3, 7], [-2, -6, 0]),
        ("mul.wide.s32 %rd3, %r20, %r20;\nshr.u64 %rd3, %rd3, 36;\ncvt.u32.u64 %r21, %rd3;", [-(1 << 20)], [16]),
        ("shfl.sync.bfly.b32 %r21, %r20, 1, 31, -1;", [3, 5], [5, 3]),
        ("redux.sync.max.s32 %r21, %r20, -1;", [3, -5], [3, 3]),
        ("mov.b64 %rd3, {%r20, %r2};\nmov.b64 {%r22, %r21}, %rd3;", [3, 5], [0, 1]),
        ("setp.gt.s32 %p1, %r20, 3;\nmov.b32 %r21, 1;\n@%p1 mov.b32 %r21, 2;", [3, 5], [1, 2]),
    ],
)
def test_integer_instructions(operations: str, given: list[int], expected: list[int]) -> None:
    assert unary(operations, torch.tensor(given, dtype=torch.int32)).tolist() == expected


def test_blocks_that_branch_apart_meet_again() -> None:
    """CTA n walks n times through a loop."""
    body = """
	mov.b32 	%r10, 0;
	mov.b32 	%r11, 0;
$L__BB0_1:
	setp.ge.s32 	%p1, %r10, %r3;
	@%p1 bra 	$L__BB0_2;
	add.s32 	%r11, %r11, 5;
	add.s32 	%r10, %r10, 1;
	bra.uni 	$L__BB0_1;
$L__BB0_2:
	st.global.b32 [ %rd2 + 0 ], { %r11 };"""
    x = run(body, torch.zeros(4 * 64, dtype=torch.int32), grid=4)
    assert x.view(4, 64).tolist() == [[5 * n] * 64 for n in range(4)]


def test_threads_may_skip_arithmetic() -> None:
    body = "mov.b32 %r21, 7;\nsetp.gt.s32 %p1, %r20, 3;\n@%p1 bra $L__BB0_1;\nadd.s32 %r21, %r20, 1;\n$L__BB0_1:"
    assert unary(body, torch.tensor([3, 5], dtype=torch.int32)).tolist() == [4, 7]


STORE, LOAD = "st.shared.b32 [%r7], %r2;", "ld.shared.b32 %r10, [%r9];"
NEXT_LANE = "xor.b32 %r11, %r7, 4;\nld.shared.b32 %r10, [%r11];"
COPY = "cp.async.ca.shared.global [ %r7 + 0 ], [ %rd2 + 0 ], 0x4, 4;\ncp.async.commit_group;"
WAIT, BARRIER = "cp.async.wait_group 0;", "bar.sync 0;"
WRITE = "st.global.b32 [ %rd1 + 0 ], { %r1 };"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([STORE, BARRIER, LOAD], None),
        ([STORE, LOAD], "another thread wrote since the last barrier"),
        ([STORE, NEXT_LANE], "another thread wrote since the last barrier"),
        ([STORE, "bar.warp.sync -1;", NEXT_LANE], None),
        ([STORE, "bar.warp.sync -1;", LOAD], "another thread wrote since the last barrier"),
        ([STORE, "bar.warp.sync -1;", NEXT_LANE, STORE], "another thread read since the last barrier"),
        ([STORE, BARRIER, LOAD, STORE], "another thread read since the last barrier"),
        ([STORE, BARRIER, LOAD, BARRIER, STORE], None),
        (["st.shared.b32 [%r5], %r2;"], "different values"),
        ([COPY, WAIT, BARRIER, LOAD], None),
        ([COPY, BARRIER, LOAD], "an asynchronous copy, not waited for"),
        ([COPY, WAIT, LOAD], "another thread wrote since the last barrier"),
        ([COPY, COPY, "cp.async.wait_group 1;", BARRIER, LOAD], "an asynchronous copy, not waited for"),
        ([COPY, STORE], "an asynchronous copy, not waited for"),
        ([WRITE], None),
        (["st.global.b32 [ %rd1 + 0 ], { %r2 };"], "different values to the same global memory"),
        ([WRITE, "ld.global.b32 { %r10 }, [ %rd1 + 0 ];"], "another thread wrote without a barrier"),
        ([WRITE, BARRIER, "ld.global.b32 { %r10 }, [ %rd1 + 0 ];"], None),
    ],
)
def test_races_are_found(lines: list[str], complaint: str | None) -> None:
    x = torch.zeros(64, dtype=torch.int32)
    if complaint is None:
        run("\n".join(lines), x, number=3)
    else:
        with pytest.raises(RaceError, match=complaint):
            run("\n".join(lines), x, number=3)


def test_race_between_blocks_is_found() -> None:
    body = """
	setp.eq.s32 	%p1, %r3, 0;
	@%p1 st.global.b32 [ %rd1 + 0 ], { %r1 };
	bar.sync 0;
	ld.global.b32 { %r10 }, [ %rd1 + 0 ];"""
    run(body, torch.zeros(64, dtype=torch.int32), number=3)
    with pytest.raises(RaceError, match="another thread wrote without a barrier"):
        run(body, torch.zeros(128, dtype=torch.int32), number=3, grid=2)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("frobnicate.b32 %r10, %r2;", UnsupportedError, "frobnicate.b32"),
        ("add.sat.s32 %r10, %r2, 1;", UnsupportedError, "add.sat.s32"),
        ("ld.global.b32 { %r10 }, [ %rd2 + 4 ];", IndexError, "outside every tensor"),
        ("st.shared.b32 [%r7+4096], %r2;", IndexError, "outside 4096 bytes"),
        ("ld.shared.v2.b32 {%r10, %r11}, [%r7];", ValueError, "not a multiple of 8"),
        ("add.s32 %r10, %r11, 1;", ValueError, "never written"),
        ("setp.gt.s32 %p1, %r2, 3;\n@%p1 bra $L__BB0_1;\nbar.sync 0;\n$L__BB0_1:", UnsupportedError, "branch apart"),
    ],
)
def test_errors_name_the_instruction(body: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        run(body, torch.zeros(64, dtype=torch.int32))
    assert message in str(raised.value) or "line" in "".join(raised.value.__notes__)


def test_warp_product_matches_numpy() -> None:
    """Fragments as in the PTX manual's figures for m16n8k16: lane 4 g + t holds rows g and g + 8."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (16, 16)), rng.integers(-4, 5, (16, 8))
    lane = np.arange(32)
    g, t = lane // 4, lane % 4

    def pack(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        halves = np.stack([low, high], -1).astype(np.float16)
        return halves.view(np.int32)[:, 0]

    rows = [(g + 8 * (r & 1), 2 * t + 8 * (r >> 1)) for r in range(4)]
    words = [pack(a[row, column], a[row, column + 1]) for row, column in rows]
    words += [pack(b[2 * t + 8 * r, g], b[2 * t + 1 + 8 * r, g]) for r in range(2)]
    x = torch.from_numpy(np.stack([*words, *words[:2]], 1).reshape(-1).copy())
    body = """
	mad.wide.s32 	%rd3, %r2, 32, %rd1;
	ld.global.v4.b32 { %r20, %r21, %r22, %r23 }, [ %rd3 + 0 ];
	ld.global.v2.b32 { %r24, %r25 }, [ %rd3 + 16 ];
	mov.b32 	%r26, 0f3F800000;
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 { %r30, %r31, %r32, %r33 },\
 { %r20, %r21, %r22, %r23 }, { %r24, %r25 }, { %r26, %r26, %r26, %r26 };
	st.global.v4.b32 [ %rd3 + 0 ], { %r30, %r31, %r32, %r33 };"""
    run(body, x, threads=32)
    found = x.view(torch.float32).reshape(32, 8).numpy()
    expected = a @ b + 1
    for c in range(4):
        np.testing.assert_array_equal(found[:, c], expected[g + 8 * (c >> 1), 2 * t + (c & 1)])


def test_swizzled_layouts_fill_memory_once() -> None:
    """64 x 64 halves with a swizzle of 128 bytes: K-major in rows of 128 bytes, by steps of 16 columns."""
    stride, kind = 1024 >> 4, 1
    seen = []
    for step in range(4):
        descriptor = kind << 62 | stride << 32 | (1024 + 32 * step) >> 4
        start, offsets = descriptor_offsets(descriptor, 64, 16, 2, False)
        seen.append(swizzle(start + offsets, descriptor))
    address = np.concatenate(seen, 1)
    np.testing.assert_array_equal(np.unique(address), 1024 + 2 * np.arange(64 * 64))
    row, column = 5, 3  # unit 0 of row 5 goes to unit 0 ^ 5
    assert address[row, column] == 1024 + 128 * row + 16 * 5 + 2 * column
