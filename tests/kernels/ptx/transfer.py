"""Moves: between registers, lanes of a warp, shared and global memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.arithmetic import refuse, target_of
from tests.kernels.ptx.formats import UNSIGNED, Array, width_of
from tests.kernels.ptx.global_memory import Actor
from tests.kernels.ptx.group import WARP, Group, Source, Step, address_of, bits_of
from tests.kernels.ptx.parser import Instruction, Operand, Register, Symbol

HINTS = ("L1::", "L2::", "evict", "nc", "volatile", "relaxed", "weak")
"""Parts of an opcode that do not change what it does here."""


def move_step(i: Instruction) -> Step:
    """Move, pack and unpack: `mov.b32 d, a`, `mov.b64 d, {a, b}`, `mov.b32 {a, b}, d`."""
    target, source, width = i.operands[0], i.operands[1], width_of(i.parts[1])
    if isinstance(target, tuple):
        parts = [None if x == Symbol("_") else _as_register(x, i) for x in target]
        whole, dtype = bits_of(source, width), UNSIGNED[width // len(parts)]

        def unpack(g: Group) -> None:
            for part, value in zip(parts, np.full(g.size, whole(g)).view(dtype).reshape(g.size, -1).T, strict=True):
                if part is not None:
                    g.write(part, np.ascontiguousarray(value))

        return unpack
    register = _as_register(target, i)
    if isinstance(source, tuple):
        pieces = [bits_of(x, width // len(source)) for x in source]

        def pack(g: Group) -> None:
            columns = [np.broadcast_to(piece(g), (g.size,)) for piece in pieces]
            g.write(register, np.stack(columns, -1).view(UNSIGNED[width]).reshape(-1))

        return pack
    if isinstance(source, Register):  # also what is pending: a copy of it is pending too

        def copy(g: Group) -> None:
            held = g.registers[source.number]
            g.registers[register.number] = g.bits(source) if held is None else held

        return copy
    literal = bits_of(source, width)
    return lambda g: g.write(register, literal(g))


def _as_register(operand: Operand, i: Instruction) -> Register:
    if not isinstance(operand, Register):
        raise refuse(i)
    return operand


def shuffle_step(i: Instruction) -> Step:
    """Read another lane's register: `shfl.sync.bfly.b32 d, a, b, c, members`."""
    mode, target = i.parts[2], target_of(i)
    if mode not in ("bfly", "idx", "up", "down") or i.parts[3] != "b32":
        raise refuse(i)
    source, distance, limits, members = (bits_of(x, 32) for x in i.operands[1:])

    def step(g: Group) -> None:
        if (members(g) != 0xFFFFFFFF).any():
            raise refuse(i)
        values = np.broadcast_to(source(g), (g.size,)).reshape(-1, WARP)
        by, limit = (np.broadcast_to(x(g), (g.size,)).reshape(-1, WARP).astype(np.int64) for x in (distance, limits))
        lane, segment, clamp = np.arange(WARP), limit >> 8 & 31, limit & 31
        most, least = (lane & segment) | (clamp & ~segment), lane & segment
        other = {
            "bfly": lane ^ (by & 31),
            "idx": least | (by & 31 & ~segment),
            "up": lane - (by & 31),
            "down": lane + (by & 31),
        }[mode]
        outside = other < most if mode == "up" else other > most
        g.write(target, np.take_along_axis(values, np.where(outside, lane, other), 1).reshape(-1))

    return step


REDUCTIONS: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def reduce_step(i: Instruction) -> Step:
    """Reduce over a warp: `redux.sync.max.s32 d, a, members`."""
    _, _, name, kind = i.parts
    function, target = REDUCTIONS[name], target_of(i)
    source, members = bits_of(i.operands[1], 32), bits_of(i.operands[2], 32)
    dtype = np.int32 if kind == "s32" else np.uint32

    def step(g: Group) -> None:
        if (members(g) != 0xFFFFFFFF).any():
            raise refuse(i)
        result = function.reduce(source(g).view(dtype).reshape(-1, WARP), axis=1, dtype=dtype)
        g.write(target, np.repeat(result, WARP))

    return step


def _shape(i: Instruction, name: str) -> tuple[str, int, str]:
    """Return space, elements and type of a load or store."""
    _, space, *rest, kind = i.parts
    count = 1
    for part in rest:
        if part in ("v2", "v4", "v8"):
            count = int(part[1:])
        elif not part.startswith(HINTS) and part != "":
            raise refuse(i)
    space = space.removesuffix("::cta")
    if i.parts[0] != name or space not in ("global", "shared"):
        raise refuse(i)
    return space, count, kind


def _actor(g: Group, chosen: Array) -> Actor:
    row = g.row[chosen]
    return Actor((g.number[chosen] + 1).astype(np.int32), (g.ctas[row] + 1).astype(np.int32), g.epochs[row])


def _chosen(g: Group, guard: Source | None, negated: bool) -> Array | None:
    """Return the threads that run an instruction, as indices; None for all."""
    if guard is None:
        return None
    mask = np.broadcast_to(guard(g), (g.size,))
    mask = ~mask if negated else mask
    return None if mask.all() else np.flatnonzero(mask)


def load_step(i: Instruction) -> Step:
    """Load: `ld.global.v4.b32 {a, b, c, d}, [address]`. Lanes whose guard is false keep their registers."""
    space, count, kind = _shape(i, "ld")
    targets = [_as_register(x, i) for x in (i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0],))]
    size = count * width_of(kind) // 8
    address = address_of(i.operands[1], 64 if space == "global" else 32)
    guard, dtype = None if i.guard is None else bits_of(i.guard, 1), f"{'i' if kind[0] == 's' else 'u'}{size // count}"

    def step(g: Group) -> None:
        chosen = _chosen(g, guard, i.negated)
        every = slice(None) if chosen is None else chosen
        place = address(g)[every]
        if space == "global":
            found = g.memory.load(place, size, dtype, _actor(g, every), i.where)
        else:
            found = g.shared.load(g.row[every], g.thread[every], place, size, dtype, i.where)
        for register, column in zip(targets, found.T, strict=True):
            value = column.astype(f"{found.dtype.kind}{register.width // 8}").view(UNSIGNED[register.width])
            if chosen is not None:
                mask = np.zeros(g.size, bool)
                mask[chosen] = True
                whole = np.zeros(g.size, value.dtype)
                whole[chosen] = value
                g.write(register, whole, mask)
            else:
                g.write(register, value)

    return step


def store_step(i: Instruction) -> Step:
    """Store: `st.shared.v2.b16 [address], {a, b}`."""
    space, count, kind = _shape(i, "st")
    operands = i.operands[1] if isinstance(i.operands[1], tuple) else (i.operands[1],)
    width, address = width_of(kind), address_of(i.operands[0], 64 if space == "global" else 32)
    sources = [bits_of(x, x.width if isinstance(x, Register) else width) for x in operands]
    guard = None if i.guard is None else bits_of(i.guard, 1)
    assert len(sources) == count

    def step(g: Group) -> None:
        chosen = _chosen(g, guard, i.negated)
        every = slice(None) if chosen is None else chosen
        place = address(g)[every]
        if not len(place):
            return
        columns = [np.broadcast_to(source(g), (g.size,))[every].astype(UNSIGNED[width]) for source in sources]
        values = np.stack(columns, -1)
        if space == "global":
            g.memory.store(place, values, _actor(g, every), i.where)
        else:
            g.shared.store(g.row[every], g.thread[every], place, values, i.where)

    return step


def copy_step(i: Instruction) -> Step:
    """Copy from global to shared memory: `cp.async.cg.shared.global [to], [from], 16, bytes`; the rest is zero."""
    if i.parts[1] != "async" or i.parts[2] not in ("ca", "cg"):
        return _copy_group_step(i)
    to, of = address_of(i.operands[0], 32), address_of(i.operands[1], 64)
    size = int(bits_of(i.operands[2], 32)(None))  # type: ignore[arg-type]
    count = bits_of(i.operands[3], 32) if len(i.operands) > 3 else None
    guard = None if i.guard is None else bits_of(i.guard, 1)

    def step(g: Group) -> None:
        chosen = _chosen(g, guard, i.negated)
        every = np.arange(g.size) if chosen is None else chosen
        given = np.full(g.size, size if count is None else count(g))[every]
        if ((given != 0) & (given != size)).any():
            raise refuse(i)
        full = given == size
        values = np.zeros((len(every), size // 4), np.uint32)
        if full.any():
            values[full] = g.memory.load(of(g)[every][full], size, "u4", _actor(g, every[full]), i.where)
        if len(every):
            g.shared.copy(g.row[every], g.thread[every], to(g)[every], values, i.where)

    return step


def _copy_group_step(i: Instruction) -> Step:
    if i.opcode == "cp.async.commit_group":
        return lambda g: g.shared.commit_copies()
    if i.opcode == "cp.async.wait_group":
        left = int(bits_of(i.operands[0], 32)(None))  # type: ignore[arg-type]
        return lambda g: g.shared.wait_copies(left)
    if i.opcode == "cp.async.wait_all":

        def wait(g: Group) -> None:
            g.shared.commit_copies()
            g.shared.wait_copies(0)

        return wait
    raise refuse(i)


def matrix_step(i: Instruction) -> Step:
    """Load or store matrices of 8 x 8 halves: `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {...}, [address]`.

    Lane `8 j + r` holds the address of row r of matrix j; lane l has columns `2 (l % 4)` and the next of row `l // 4`.
    """
    loads, flags = i.parts[0] == "ldmatrix", i.parts[4:]
    vector, place = i.operands if loads else i.operands[::-1]
    registers = [_as_register(x, i) for x in (vector if isinstance(vector, tuple) else (vector,))]
    transposed, shape = "trans" in flags, [f for f in flags if f not in ("trans", "shared", "shared::cta")]
    if i.parts[1:4] != ["sync", "aligned", "m8n8"] or shape != [f"x{len(registers)}", "b16"]:
        raise refuse(i)
    address = address_of(place, 32)

    def step(g: Group) -> None:
        number = len(registers)
        lanes = np.arange(g.size).reshape(-1, WARP)[:, : 8 * number].reshape(-1)
        row, thread, rows = g.row[lanes], g.thread[lanes], address(g)[lanes]
        if loads:
            matrices = g.shared.load(row, thread, rows, 16, "u2", i.where).reshape(-1, number, 8, 8)
            matrices = matrices.swapaxes(2, 3) if transposed else matrices
            words = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, number, WARP)
            for n, register in enumerate(registers):
                g.write(register, np.ascontiguousarray(words[:, n]).reshape(-1))
        else:
            words = np.stack([g.bits(register).reshape(-1, WARP) for register in registers], 1)
            matrices = words.view(np.uint16).reshape(-1, number, 8, 8)
            matrices = matrices.swapaxes(2, 3) if transposed else matrices
            g.shared.store(row, thread, rows, np.ascontiguousarray(matrices).reshape(-1, 8), i.where)

    return step


def _barrier_step(i: Instruction) -> Step:
    if i.opcode not in ("bar.sync", "barrier.sync") or len(i.operands) != 1:
        if i.opcode == "bar.warp.sync":
            return lambda g: g.shared.warp_barrier()
        raise refuse(i)
    return lambda g: g.barrier()


def _fence_step(i: Instruction) -> Step:
    if i.opcode not in ("fence.proxy.async.shared::cta", "fence.proxy.async"):
        raise refuse(i)
    return lambda g: g.shared.fence()


STEPS: dict[str, Callable[[Instruction], Step]] = {
    "mov": move_step,
    "shfl": shuffle_step,
    "redux": reduce_step,
    "ld": load_step,
    "st": store_step,
    "cp": copy_step,
    "ldmatrix": matrix_step,
    "stmatrix": matrix_step,
    "bar": _barrier_step,
    "barrier": _barrier_step,
    "fence": _fence_step,
}
