"""Products of matrices: `mma.sync` of warps, and `wgmma` of four warps with operands in shared memory.

Shape letters as in the PTX manual: A `[M, K]`, B `[K, N]`, C and D `[M, N]`; W warps; lane = 4 g + t.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.arithmetic import refuse
from tests.kernels.ptx.formats import Array, UnsupportedError, decode
from tests.kernels.ptx.group import Group, Pending, Source, Step, bits_of
from tests.kernels.ptx.parser import Immediate, Instruction, Operand, Register

GROUP_WARPS = 4
HALVES = ("f16", "bf16")


def _stack(g: Group, sources: list[Source]) -> Array:
    """Return registers as `[W, 8, 4, registers]`."""
    return np.stack([np.broadcast_to(source(g), (g.size,)) for source in sources], -1).reshape(-1, 8, 4, len(sources))


def _floats(words: Array, kind: str) -> Array:
    """Decode words `[..., registers]` to `[..., registers, numbers in a word]`; tf32 has 10 bits of fraction."""
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
    halves = np.ascontiguousarray(words)[..., None].view(np.uint16)
    return decode(halves, kind)


def _left(words: Array, kind: str) -> Array:
    """Return A `[W, 16, K]` of registers: row g or, for odd ones, g + 8; columns of every second pair follow."""
    x = _floats(words, kind)  # [W, g, t, register, number]
    warps, number = len(x), x.shape[-1]
    x = x.reshape(warps, 8, 4, -1, 2, number)  # register = 2 c + r
    return x.transpose(0, 4, 1, 3, 2, 5).reshape(warps, 16, -1)


def _right(words: Array, kind: str) -> Array:
    """Return B `[W, K, 8]` of registers: column g."""
    x = _floats(words, kind)
    return x.transpose(0, 3, 2, 4, 1).reshape(len(x), -1, 8)


def _to_matrix(words: Array) -> Array:
    """Return C `[W, 16, N]` of registers: each four are rows g and g + 8 of 8 columns."""
    x = words.view(np.float32)
    warps = len(x)
    return x.reshape(warps, 8, 4, -1, 2, 2).transpose(0, 4, 1, 3, 2, 5).reshape(warps, 16, -1)


def _from_matrix(matrix: Array) -> list[Array]:
    """Return registers of D `[W, 16, N]`."""
    warps, _, columns = matrix.shape
    x = matrix.astype(np.float32).reshape(warps, 2, 8, columns // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4)
    return list(np.ascontiguousarray(x).reshape(columns // 2, -1).view(np.uint32))


def warp_step(i: Instruction) -> Step:
    """Multiply in a warp: `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 d, a, b, c`."""
    shape, kinds = re.fullmatch(r"m16n8k(\d+)", i.parts[3]), i.parts[6:]
    kind = kinds[1]
    if i.parts[1:3] != ["sync", "aligned"] or i.parts[4:6] != ["row", "col"] or shape is None or len(kinds) != 4:
        raise refuse(i)
    if kinds != ["f32", kind, kind, "f32"] or kind not in (*HALVES, "tf32"):
        raise refuse(i)
    targets = _vector(i.operands[0])
    a, b, c = ([bits_of(x, 32) for x in _vector(operand)] for operand in i.operands[1:])
    assert len(a) * (2 if kind in HALVES else 1) * 4 == 2 * int(shape[1])
    assert len(a) == 2 * len(b)

    def step(g: Group) -> None:
        left, right, start = _left(_stack(g, a), kind), _right(_stack(g, b), kind), _to_matrix(_stack(g, c))
        for target, value in zip(targets, _from_matrix(start + left @ right), strict=True):
            g.write(target, value)

    return step


def _vector(operand: Operand) -> list[Register]:
    assert isinstance(operand, tuple)
    return [x for x in operand if isinstance(x, Register)]


SWIZZLES = {0: 0, 1: 3, 2: 2, 3: 1}
"""Bits of an address that are mixed, by the layout type in a descriptor: 128, 64 and 32 bytes have 3, 2 and 1."""


def descriptor_offsets(descriptor: int, rows: int, depth: int, itemsize: int, major: bool) -> tuple[int, Array]:
    """Return where a matrix `[rows, depth]` begins in shared memory, and offsets of its elements before the swizzle.

    The layouts are those of the PTX manual's canonical ones: units of 16 bytes, eight rows (or columns) a core matrix.

    Args:
        descriptor: 64 bits.
        rows: Of M or N.
        depth: Of K.
        itemsize: Bytes of an element.
        major: Whether neighbours along `rows`, not along `depth`, are neighbours in memory.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if descriptor >> 49 & 7:
        raise UnsupportedError("a wgmma descriptor with a base offset is not emulated")
    unit, span = 16 // itemsize, 1 << SWIZZLES[descriptor >> 62]  # elements in 16 bytes; units of a swizzled row
    row, column = np.arange(rows)[:, None], np.arange(depth)[None, :]
    if major:
        if span == 1:
            offsets = row % unit * itemsize + row // unit * stride + column % 8 * 16 + column // 8 * leading
        else:
            units = row // unit
            along = row % unit * itemsize + units % span * 16 + units // span * leading
            offsets = along + column % 8 * 16 * span + column // 8 * stride
    else:
        across = row % 8 * 16 * span + row // 8 * stride
        step = leading if span == 1 else 16
        offsets = across + column % unit * itemsize + column // unit * step
    return start, offsets


def swizzle(address: Array, descriptor: int) -> Array:
    """Mix bits 7 and up of addresses into those from 4."""
    return address ^ (address >> 3 & ((1 << SWIZZLES[descriptor >> 62]) - 1) << 4)


def _load_shared(g: Group, words: Array, rows: int, kind: str, major: bool, where: str) -> Array:
    """Return matrices `[products, rows, K]` of descriptors, one of each four warps."""
    itemsize, depth = (2, 16) if kind in HALVES else (4, 8)
    by_group = words.reshape(-1, GROUP_WARPS * 32)
    if (by_group != by_group[:, :1]).any():
        raise ValueError(f"{where}: the threads of a warp group have different descriptors")
    addresses = []
    for descriptor in by_group[:, 0].tolist():
        start, offsets = descriptor_offsets(descriptor, rows, depth, itemsize, major)
        addresses.append(swizzle(start + offsets, descriptor))
    row = g.row.reshape(-1, GROUP_WARPS * 32)[:, 0]
    bits = g.shared.load_matrices(row, np.stack(addresses), f"u{itemsize}", where)
    return decode(bits, kind) if kind in HALVES else (bits & np.uint32(0xFFFFE000)).view(np.float32)


def group_step(i: Instruction) -> Step:
    """Multiply in four warps, `wgmma.mma_async`, or order such products."""
    if i.opcode == "wgmma.fence.sync.aligned":
        return lambda g: None
    if i.opcode == "wgmma.commit_group.sync.aligned":
        return lambda g: setattr(g.shared, "products", g.shared.products + 1)
    if i.opcode == "wgmma.wait_group.sync.aligned":
        left = int(bits_of(i.operands[0], 32)(None))  # type: ignore[arg-type]
        return lambda g: g.wait_products(left)
    shape, kinds = re.fullmatch(r"m64n(\d+)k(?:8|16)", i.parts[4] if len(i.parts) > 4 else ""), i.parts[5:]
    if i.opcode.split(".m64")[0] != "wgmma.mma_async.sync.aligned" or shape is None or len(kinds) != 3:
        raise refuse(i)
    kind = kinds[1]
    if kinds != ["f32", kind, kind] or kind not in (*HALVES, "tf32"):
        raise refuse(i)
    targets, (a, b, adds, *flags) = _vector(i.operands[0]), i.operands[1:]
    assert all(isinstance(flag, Immediate) for flag in flags)
    sign_a, sign_b, *major = (flag.bits for flag in flags if isinstance(flag, Immediate))
    if sign_a != 1 or sign_b != 1:
        raise refuse(i)
    from_registers = isinstance(a, tuple)
    major_b = bool(major[-1]) if major else False
    major_a = bool(major[0]) if len(major) == 2 else False
    left = [bits_of(x, 32) for x in _vector(a)] if from_registers else [bits_of(a, 64)]
    right, adds = bits_of(b, 64), bits_of(adds, 1)
    columns = int(shape[1])

    def step(g: Group) -> None:
        warps = g.size // 32
        if warps % GROUP_WARPS or g.threads % (GROUP_WARPS * 32):
            raise ValueError(f"{i.where}: wgmma needs a multiple of four warps")
        if from_registers:
            x = _left(_stack(g, left), kind).reshape(warps // GROUP_WARPS, 64, -1)
        else:
            x = _load_shared(g, np.full(g.size, left[0](g)), 64, kind, major_a, i.where)
        y = _load_shared(g, np.full(g.size, right(g)), columns, kind, major_b, i.where)
        product = (x @ y.swapaxes(1, 2)).reshape(warps, 16, columns)
        keeps = np.broadcast_to(adds(g), (g.size,)).reshape(warps, 32)
        if (keeps != keeps[:, :1]).any():
            raise ValueError(f"{i.where}: lanes of a warp disagree whether a wgmma adds")
        if keeps.any():
            held = [g.registers[target.number] for target in targets]
            words = [x.value if isinstance(x, Pending) else x for x in held]
            start = _to_matrix(_stack(g, [lambda g, x=x: x for x in words]))
            product = np.where(keeps[:, :1, None], start, np.float32(0)) + product
        for target, value in zip(targets, _from_matrix(product), strict=True):
            g.registers[target.number] = Pending(value, g.shared.products + 1)

    return step


STEPS: dict[str, Callable[[Instruction], Step]] = {"mma": warp_step, "wgmma": group_step}
