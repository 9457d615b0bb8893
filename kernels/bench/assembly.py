"""Machine code of a kernel: its loops with matrix products, and its instructions by kind. See `sass` and `amdgcn`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

KINDS = ("tensor", "mufu", "global", "shared", "local", "shuffle", "integer", "float", "other")
"""Matrix products; exponentials and other special functions; loads and stores of global memory, shared memory and the
stack; exchange between threads; arithmetic; the rest."""

LEAST_PRODUCTS = 32
"""Fused multiply-adds that make a loop one of products, if a kernel uses no tensor cores."""


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        address: Where it stands.
        name: With its suffixes.
        operands: As they are written.
        kind: One of `KINDS`.
        multiplies: Multiply-adds of a warp.
        loads: Bytes that a thread loads from global memory.
        target: Address to which it jumps.
        always: Whether it always jumps, so that the next one does not follow.
    """

    address: int
    name: str
    operands: str
    kind: str
    multiplies: int
    loads: int
    target: int | None
    always: bool = False


class Code(NamedTuple):
    """Code of a kernel in its order; registers of a thread, and its bytes of stack."""

    instructions: list[Instruction]
    registers: int
    stack: int


def walks(code: Sequence[Instruction]) -> list[tuple[int, int]]:
    """Return the innermost loops with matrix products, by the numbers of their first and one past their last line."""
    place = {x.address: i for i, x in enumerate(code)}
    by_start: dict[int, int] = {}
    for i, x in enumerate(code):
        if x.target is not None and x.target < x.address:
            start = place[x.target]
            by_start[start] = max(by_start.get(start, 0), i + 1)  # a loop may have several ways back
    uses_tensor = any(x.kind == "tensor" for x in code)

    def multiplies(start: int, stop: int) -> bool:
        if uses_tensor:
            return any(x.kind == "tensor" for x in code[start:stop])
        return sum(x.multiplies > 0 for x in code[start:stop]) >= LEAST_PRODUCTS

    found = sorted(span for span in by_start.items() if multiplies(*span))
    return [(a, b) for a, b in found if not any((a, b) != (c, d) and a <= c and d <= b for c, d in found)]


def shortest_way(walk: Sequence[Instruction]) -> int:
    """Count the instructions of the shortest way through a loop, from its first one back to it."""
    start, place = walk[0].address, {x.address: i for i, x in enumerate(walk)}
    before = [0, *[len(walk)] * len(walk)]
    shortest = len(walk)
    for i, x in enumerate(walk):
        count = before[i] + 1
        if x.target == start:
            shortest = min(shortest, count)
        elif x.target is not None and place.get(x.target, 0) > i:
            before[place[x.target]] = min(before[place[x.target]], count)
        if not x.always:
            before[i + 1] = min(before[i + 1], count)
    return shortest


def count_kinds(code: Sequence[Instruction]) -> Counter[str]:
    """Count instructions by kind."""
    return Counter(x.kind for x in code)


def count_loads(code: Sequence[Instruction]) -> Counter[int]:
    """Count loads from global memory by the bytes that a thread takes."""
    return Counter(x.loads for x in code if x.loads)


def tensor_core(code: Sequence[Instruction], products: int) -> str:
    """Return the instruction that multiplies matrices, or "none".

    Args:
        code: Of a loop.
        products: Matrix products in it. If the compiler waits more often than once for each of them, HGMMA that could
            run at the same time do not: then "serial" is added.
    """
    matrix = [x for x in code if x.kind == "tensor"]
    if not matrix:
        return "none"
    name = matrix[0].name.removeprefix("v_").upper().replace("_", ".").partition(".")[0]
    waits = sum("gsb0" in x.operands for x in matrix)
    return f"{name} serial" if waits > products else name
