"""Arithmetic, logic, comparisons and conversions of registers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce

import numpy as np

from tests.kernels.ptx.formats import (
    UNSIGNED,
    Array,
    UnsupportedError,
    encode,
    flush,
    integer_dtype,
    is_float,
    round_tf32,
    width_of,
)
from tests.kernels.ptx.group import Group, Source, Step, bits_of, value_of
from tests.kernels.ptx.parser import Instruction, Register

Function = Callable[..., Array]


def _divide(a: Array, b: Array) -> Array:
    """Divide integers, rounded to zero; by zero all bits are set, as on a GPU."""
    quotient = np.floor_divide(a, np.where(b == 0, 1, b).astype(a.dtype))
    quotient = quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)
    return np.where(b == 0, np.array(-1).astype(a.dtype), quotient)


def _fused(a: Array, b: Array, c: Array) -> Array:
    """Multiply and add; the product of two float32 is exact in float64."""
    return a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)


FLOAT: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": _fused,
    "div": np.divide,
    "min": np.fmin,
    "max": np.fmax,
    "abs": np.abs,
    "neg": np.negative,
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "copysign": lambda sign, x: np.copysign(x, sign),
}
FLOAT_FLAGS = {"rn", "approx", "full", "ftz", "NaN"}

INTEGER: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "div": _divide,
    "rem": lambda a, b: a - _divide(a, b) * b,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "neg": np.negative,
}

LOGIC: dict[str, Function] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}

COMPARE: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def refuse(instruction: Instruction) -> UnsupportedError:
    """Return the error of what is not emulated."""
    return UnsupportedError(f"PTX instruction {instruction.opcode} is not emulated: {instruction.where}")


def target_of(instruction: Instruction) -> Register:
    """Return the only register that an instruction writes."""
    target = instruction.operands[0]
    if not isinstance(target, Register):
        raise refuse(instruction)
    return target


def float_step(i: Instruction) -> Step:
    """Compute floats: `add.rn.ftz.f32`."""
    name, *flags, kind = i.parts
    if not set(flags) <= FLOAT_FLAGS or len(i.types) != 1:
        raise refuse(i)
    function, target, ftz = FLOAT[name], target_of(i), "ftz" in flags
    if "NaN" in flags:
        function = {"min": np.minimum, "max": np.maximum}[name]
    sources = [value_of(x, kind) for x in i.operands[1:]]

    def step(g: Group) -> None:
        values = [source(g) for source in sources]
        if ftz:
            values = [flush(x) for x in values]
        result = function(*values)
        if ftz:
            result = flush(result.astype(np.float32))
        g.write(target, encode(result, kind))

    return step


def integer_step(i: Instruction) -> Step:
    """Compute integers as wide as the operands: `add.s32`; `max.relu.s32` is no less than 0."""
    name, *flags, kind = i.parts
    if flags not in ([], ["relu"]):
        raise refuse(i)
    function, target = INTEGER[name], target_of(i)
    sources = [value_of(x, kind) for x in i.operands[1:]]

    def step(g: Group) -> None:
        result = function(*(source(g) for source in sources))
        g.write(target, np.maximum(result, 0) if flags else result)

    return step


def multiply_step(i: Instruction) -> Step:
    """Multiply integers, and add a third: `mul.lo.s32`, `mad.wide.u32`."""
    name, part, kind = i.parts
    width, target = width_of(kind), target_of(i)
    a, b = (value_of(x, kind) for x in i.operands[1:3])
    wide = f"{kind[0]}{2 * width if part == 'wide' else width}"
    c = value_of(i.operands[3], wide) if name == "mad" else None
    if part == "lo":

        def product(g: Group) -> Array:
            return a(g) * b(g)
    elif part in ("wide", "hi") and width <= 32:
        dtype = np.dtype(f"{integer_dtype(kind).kind}{width // 4}")

        def product(g: Group) -> Array:
            full = a(g).astype(dtype) * b(g).astype(dtype)
            return full if part == "wide" else (full >> width).astype(integer_dtype(kind))
    elif (part, kind) == ("hi", "u64"):

        def product(g: Group) -> Array:
            low, word, (x, y) = np.uint64(0xFFFFFFFF), np.uint64(32), (a(g), b(g))
            middle = (x >> word) * (y & low) + ((x & low) * (y & low) >> word)
            return (x >> word) * (y >> word) + (middle >> word) + ((x & low) * (y >> word) + (middle & low) >> word)
    else:
        raise refuse(i)
    return lambda g: g.write(target, product(g) if c is None else product(g) + c(g))


def logic_step(i: Instruction) -> Step:
    """Combine bits or truth values: `and.b32`, `not.pred`."""
    name, kind = i.parts
    function, target, width = LOGIC[name], target_of(i), width_of(kind)
    sources = [bits_of(x, width) for x in i.operands[1:]]
    return lambda g: g.write(target, function(*(source(g) for source in sources)))


def shift_step(i: Instruction) -> Step:
    """Shift; by the width or more, nothing but zeros or signs is left."""
    name, kind = i.parts
    target, shift = target_of(i), np.left_shift if name == "shl" else np.right_shift
    source, amount = value_of(i.operands[1], kind), bits_of(i.operands[2], 32)
    return lambda g: g.write(target, _shift(shift, source(g), amount(g)))


def funnel_step(i: Instruction) -> Step:
    """Shift two words together, and keep one: `shf.l.wrap.b32 d, low, high, amount`."""
    _, direction, mode, kind = i.parts
    if direction not in ("l", "r") or mode not in ("wrap", "clamp") or kind != "b32":
        raise refuse(i)
    target, (low, high, amount) = target_of(i), (bits_of(x, 32) for x in i.operands[1:])

    def step(g: Group) -> None:
        both = low(g).astype(np.uint64) | (high(g).astype(np.uint64) << np.uint64(32))
        by = (amount(g) & np.uint32(31) if mode == "wrap" else np.minimum(amount(g), 32)).astype(np.uint64)
        shifted = (both << by) >> np.uint64(32) if direction == "l" else both >> by
        g.write(target, shifted.astype(np.uint32))

    return step


def extract_step(i: Instruction) -> Step:
    """Extract a field of bits: `bfe.u32 d, a, position, length`."""
    kind, target = i.parts[1], target_of(i)
    width = width_of(kind)
    source, (first, count) = value_of(i.operands[1], kind), (bits_of(x, 32) for x in i.operands[2:])

    def step(g: Group) -> None:
        x = source(g)
        position, length = (np.minimum(part(g) & np.uint32(255), width).astype(np.int64) for part in (first, count))
        # Moved up, so that the field's last bit is the first of the word, and down again: with its sign, if it has one.
        # A field that reaches beyond the word ends with it.
        last = np.minimum(position + length, width)
        field = _shift(np.left_shift, x, width - last)
        field = _shift(np.right_shift, field, width - last + position)
        g.write(target, np.where((length == 0) | ((position >= width) & (kind[0] == "u")), x.dtype.type(0), field))

    return step


def _shift(shift: np.ufunc, x: Array, by: Array) -> Array:
    """Shift by up to the width; all bits leave a word of no sign."""
    most = x.dtype.itemsize * 8 - 1
    shifted = shift(x, np.minimum(by, most).astype(x.dtype))
    return shifted if x.dtype.kind == "i" and shift is np.right_shift else np.where(by > most, x.dtype.type(0), shifted)


def insert_step(i: Instruction) -> Step:
    """Insert a field of bits: `bfi.b32 d, a, b, position, length`."""
    if i.parts[1] != "b32":
        raise refuse(i)
    target = target_of(i)
    a, b, first, count = (bits_of(x, 32) for x in i.operands[1:])

    def step(g: Group) -> None:
        position, length = (part(g).astype(np.uint64) & np.uint64(255) for part in (first, count))
        position, length = np.minimum(position, np.uint64(32)), np.minimum(length, np.uint64(32))
        mask = ((np.uint64(1) << length) - np.uint64(1)) << position
        merged = (b(g) & ~mask) | ((a(g).astype(np.uint64) << position) & mask)
        g.write(target, merged.astype(np.uint32))

    return step


def permute_step(i: Instruction) -> Step:
    """Pick four of eight bytes: `prmt.b32 d, a, b, selector`."""
    if i.parts[1:] != ["b32"]:
        raise refuse(i)
    target = target_of(i)
    a, b, selector = (bits_of(x, 32) for x in i.operands[1:])

    def step(g: Group) -> None:
        both = a(g).astype(np.uint64) | (b(g).astype(np.uint64) << np.uint64(32))
        choice, result = selector(g).astype(np.uint64), np.zeros((), np.uint64)
        for byte in range(4):
            nibble = (choice >> np.uint64(4 * byte)) & np.uint64(15)
            picked = (both >> (np.uint64(8) * (nibble & np.uint64(7)))) & np.uint64(255)
            signs = np.where(picked & np.uint64(128), np.uint64(255), np.uint64(0))
            result = result | (np.where(nibble & np.uint64(8), signs, picked) << np.uint64(8 * byte))
        g.write(target, result.astype(np.uint32))

    return step


def table_step(i: Instruction) -> Step:
    """Combine three words by a table of truth values: `lop3.b32 d, a, b, c, table`."""
    target = target_of(i)
    words, lookup = [bits_of(x, 32) for x in i.operands[1:4]], bits_of(i.operands[4], 32)

    def step(g: Group) -> None:
        table, (a, b, c) = int(lookup(g)), (word(g) for word in words)
        terms = [(a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c) for n in range(8) if table >> n & 1]
        g.write(target, reduce(operator.or_, terms, np.zeros((), np.uint32)))

    return step


def compare_step(i: Instruction) -> Step:
    """Compare: `setp.lt.s32 p, a, b`, `setp.eq.and.f16x2 p|q, a, b, c`."""
    relation, *flags, kind = i.parts[1:]
    combine = next((flag for flag in flags if flag in LOGIC), None)
    if not set(flags) <= {"ftz", combine}:
        raise refuse(i)
    targets = i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0],)
    assert all(isinstance(target, Register) for target in targets)
    a, b = (value_of(x, kind) for x in i.operands[1:3])
    c = None if combine is None else value_of(i.operands[3], "pred")
    ordered = COMPARE.get(relation)

    def test(x: Array, y: Array) -> Array:
        if ordered is not None and relation != "ne":
            return ordered(x, y)
        unordered = np.isnan(x) | np.isnan(y) if is_float(kind) else np.zeros((), bool)
        if relation in ("num", "nan"):
            return unordered if relation == "nan" else ~unordered
        if relation == "ne":
            return np.not_equal(x, y) & ~unordered
        if relation[:-1] in COMPARE and relation.endswith("u"):
            return COMPARE[relation[:-1]](x, y) | unordered
        raise refuse(i)

    def step(g: Group) -> None:
        x, y = a(g), b(g)
        found = np.asarray(test(flush(x), flush(y)) if "ftz" in flags else test(x, y))
        results = found.reshape(-1, 2).T if kind.endswith("x2") else (found, ~found)
        for target, result in zip(targets, results, strict=False):
            g.write(target, result if c is None else LOGIC[combine](result, c(g)))  # type: ignore[index, arg-type]

    return step


def select_step(i: Instruction) -> Step:
    """Choose by a predicate: `selp.b32 d, a, b, p`."""
    target, width = target_of(i), width_of(i.parts[1])
    a, b, choice = bits_of(i.operands[1], width), bits_of(i.operands[2], width), bits_of(i.operands[3], 1)
    return lambda g: g.write(target, np.where(choice(g), a(g), b(g)))


def convert_step(i: Instruction) -> Step:
    """Convert: `cvt.rn.bf16x2.f32 d, high, low`, `cvt.s64.s32`, `cvt.rna.tf32.f32`."""
    *flags, to, of = i.parts[1:]
    target = target_of(i)
    if to == "tf32" and set(flags) <= {"rna", "rn"}:
        word = bits_of(i.operands[1], 32)
        # Rounding to even differs from rounding away from zero in ties only: not told apart here.
        return lambda g: g.write(target, round_tf32(word(g)))
    if to.endswith("x2") and flags == ["rn"] and of == "f32":
        high, low = (value_of(x, of) for x in i.operands[1:])

        def pack(g: Group) -> None:
            pair = np.broadcast_arrays(low(g), high(g), g.thread)[:2]
            g.write(target, encode(np.stack(pair, -1).reshape(-1), to))

        return pack
    source = value_of(i.operands[1], of) if _reads_whole(i, of) else _low_part(i, of)
    if is_float(to) and set(flags) <= {"rn"}:
        if is_float(of):
            return lambda g: g.write(target, encode(source(g), to))
        return lambda g: g.write(target, encode(source(g).astype(np.float64), to))
    if is_float(of) and flags and flags[0] in ROUND:
        round_, dtype = ROUND[flags[0]], integer_dtype(to)
        limits = np.iinfo(dtype)

        def to_integer(g: Group) -> None:  # saturates; NaN becomes zero
            values = round_(source(g).astype(np.float64))
            high = values >= limits.max
            inside = np.where(np.isnan(values) | high, 0, np.maximum(values, limits.min)).astype(dtype)
            g.write(target, _widened(np.where(high, dtype.type(limits.max), inside), target))

        return to_integer
    if not is_float(to) and not is_float(of) and not flags:
        dtype = integer_dtype(to)
        return lambda g: g.write(target, _widened(source(g).astype(dtype), target))
    raise refuse(i)


ROUND: dict[str, Function] = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def _reads_whole(i: Instruction, of: str) -> bool:
    operand = i.operands[1]
    return not isinstance(operand, Register) or operand.width == width_of(of)


def _low_part(i: Instruction, of: str) -> Source:
    """Read the lower bits of a register."""
    operand = i.operands[1]
    assert isinstance(operand, Register)
    whole, narrow = bits_of(operand, operand.width), integer_dtype(of)
    return lambda g: whole(g).astype(UNSIGNED[width_of(of)]).view(narrow)


def _widened(values: Array, target: Register) -> Array:
    """Extend integers to the width of a register, by their sign if they have one."""
    kind = values.dtype.kind
    return values.astype(np.dtype(f"{kind}{target.width // 8}"))


def count_step(i: Instruction) -> Step:
    """Count bits or leading zeros, or reverse bits: `popc.b32`, `clz.b32`, `brev.b32`."""
    name, kind = i.parts
    target, width = target_of(i), width_of(kind)
    source = bits_of(i.operands[1], width)

    def step(g: Group) -> None:
        bits = (source(g)[..., None] >> np.arange(width, dtype=UNSIGNED[width])) & UNSIGNED[width].type(1)
        if name == "popc":
            result = bits.sum(-1).astype(np.uint32)
        elif name == "clz":
            result = np.where(bits.any(-1), np.argmax(bits[..., ::-1], -1), width).astype(np.uint32)
        else:
            result = (bits[..., ::-1] << np.arange(width, dtype=UNSIGNED[width])).sum(-1).astype(UNSIGNED[width])
        g.write(target, result)

    return step


def arithmetic_step(i: Instruction) -> Step | None:
    """Return the step of an instruction of this module, or None."""
    name, kind = i.parts[0], i.parts[-1]
    if name in STEPS:
        return STEPS[name](i)
    if name in FLOAT and is_float(kind):
        return float_step(i)
    if name == "mul":
        return multiply_step(i)
    if name in INTEGER:
        return integer_step(i)
    return None


STEPS: dict[str, Callable[[Instruction], Step]] = {
    **dict.fromkeys(LOGIC, logic_step),
    "mad": multiply_step,
    "shl": shift_step,
    "shr": shift_step,
    "shf": funnel_step,
    "bfe": extract_step,
    "bfi": insert_step,
    "prmt": permute_step,
    "lop3": table_step,
    "setp": compare_step,
    "selp": select_step,
    "cvt": convert_step,
    "popc": count_step,
    "clz": count_step,
    "brev": count_step,
}
