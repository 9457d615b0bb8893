"""The state of thread blocks (CTAs) that run in lockstep, and how instructions read and write their registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tests.kernels.ptx.formats import UNSIGNED, Array, UnsupportedError, decode, integer_dtype, is_float, width_of
from tests.kernels.ptx.global_memory import GlobalMemory
from tests.kernels.ptx.parser import Address, Immediate, Operand, Register, Symbol
from tests.kernels.ptx.shared_memory import BASE, SharedMemory

Step = Callable[["Group"], None]
Source = Callable[["Group"], Array]

WARP = 32


class RaceError(Exception):
    """Threads that touch the same memory without an order between them."""


@dataclass
class Pending:
    """What a register will hold when an asynchronous product is waited for."""

    value: Array
    stage: int


@dataclass
class Group:
    """CTAs at the same place of a program.

    Attributes:
        ctas: `[G]` their numbers in the grid.
        threads: In each.
        registers: Bits `[G * threads]` by register; None where nothing was written yet.
        shared: Shared memory of each.
        memory: Global memory.
        epochs: `[G]` barriers passed.
    """

    ctas: Array
    threads: int
    registers: list[Array | Pending | None]
    shared: SharedMemory
    memory: GlobalMemory
    epochs: Array

    def __post_init__(self) -> None:
        size = len(self.ctas)
        self.thread = np.tile(np.arange(self.threads, dtype=np.uint32), size)
        self.row = np.repeat(np.arange(size), self.threads)
        self.number = (self.ctas[self.row] * self.threads + self.thread).astype(np.int64)

    @property
    def size(self) -> int:
        """Threads of all CTAs."""
        return len(self.thread)

    def select(self, rows: Array, live: set[int]) -> Group:
        """Return some of the CTAs, with the registers that are live."""
        registers: list[Array | Pending | None] = [None] * len(self.registers)
        for number in live:
            held = self.registers[number]
            if isinstance(held, Pending):
                registers[number] = Pending(held.value.reshape(-1, self.threads)[rows].reshape(-1), held.stage)
            elif held is not None:
                registers[number] = held.reshape(-1, self.threads)[rows].reshape(-1)
        shared = self.shared.select(rows)
        return replace(self, ctas=self.ctas[rows], registers=registers, shared=shared, epochs=self.epochs[rows])

    def join(self, other: Group, live: set[int]) -> Group:
        """Return the CTAs of both; they are at the same place."""
        shared = self.shared.join(other.shared)
        registers: list[Array | Pending | None] = [None] * len(self.registers)
        for number in live:
            parts = [g._age(number, shared.products) for g in (self, other)]
            held = [p for p in parts if p is not None]
            if not held:
                continue
            # A register that only some CTAs have written is not read by the others.
            values = [
                np.zeros(g.size, np.asarray(held[0][0]).dtype) if p is None else p[0]
                for g, p in zip((self, other), parts, strict=True)
            ]
            stage, value = max(p[1] for p in held), np.concatenate(values)
            registers[number] = Pending(value, stage) if stage else value
        return replace(
            self,
            ctas=np.concatenate([self.ctas, other.ctas]),
            registers=registers,
            shared=shared,
            epochs=np.concatenate([self.epochs, other.epochs]),
        )

    def _age(self, number: int, products: int) -> tuple[Array, int] | None:
        held = self.registers[number]
        if isinstance(held, Pending):
            return held.value, held.stage + products - self.shared.products
        return None if held is None else (held, 0)

    def barrier(self) -> None:
        """Let every thread of a CTA wait for the others."""
        self.shared.barrier()
        self.epochs = self.epochs + 1

    def wait_products(self, left: int) -> None:
        """Wait until at most `left` committed groups of products are under way."""
        for number, held in enumerate(self.registers):
            if isinstance(held, Pending) and held.stage <= self.shared.products - left:
                self.registers[number] = held.value
        self.shared.wait_products(left)

    def bits(self, register: Register) -> Array:
        """Return the bits of a register."""
        held = self.registers[register.number]
        if isinstance(held, Pending):
            raise RaceError("reads the result of a wgmma that was not waited for")
        if held is None:
            raise ValueError("reads a register that was never written")
        return held

    def write(self, register: Register, value: Array, mask: Array | None = None) -> None:
        """Write bits to a register, where a mask says so."""
        bits = np.asarray(value).view(UNSIGNED[register.width])
        if bits.ndim == 0:
            bits = np.full(self.size, bits)
        if mask is not None:
            before = self.registers[register.number]
            # Full of ones, which is NaN in every float format: what is read but was never written shall show.
            unwritten = np.full(self.size, -1, np.int64).astype(bits.dtype)
            bits = np.where(mask, bits, unwritten if before is None else self.bits(register))
        self.registers[register.number] = bits


def constant(immediate: Immediate, width: int) -> Array:
    """Return a literal as bits."""
    if width == 1:
        return np.array(bool(immediate.bits))
    return np.array(immediate.bits & ((1 << width) - 1), UNSIGNED[width])


def bits_of(operand: Operand, width: int) -> Source:
    """Return how to read an operand's bits; literals have no axis."""
    if isinstance(operand, Register):
        if operand.width != width:
            raise UnsupportedError(f"register of {operand.width} bits for an operand of {width}")
        return lambda g: g.bits(operand)
    if isinstance(operand, Immediate):
        literal = constant(operand, width)
        return lambda g: literal
    if isinstance(operand, Symbol):
        return _special(operand.name, width)
    raise UnsupportedError(f"operand {operand} is not emulated")


def _special(name: str, width: int) -> Source:
    dtype = UNSIGNED[width]
    if name == "%tid.x":
        return lambda g: g.thread.astype(dtype)
    if name == "%ctaid.x":
        return lambda g: g.ctas[g.row].astype(dtype)
    if name == "%laneid":
        return lambda g: (g.thread % WARP).astype(dtype)
    if name == "%ntid.x":
        return lambda g: np.array(g.threads, dtype)
    if name in ("%tid.y", "%tid.z", "%ctaid.y", "%ctaid.z"):
        return lambda g: np.array(0, dtype)
    if name == "global_smem":
        return lambda g: np.array(BASE, dtype)
    raise UnsupportedError(f"PTX symbol {name} is not emulated")


def value_of(operand: Operand, kind: str) -> Source:
    """Return how to read an operand as integers, floats or truth values of a PTX type."""
    source, width = bits_of(operand, width_of(kind)), width_of(kind)
    if is_float(kind):
        if kind.endswith("x2") and not isinstance(operand, Register):
            return lambda g: decode(np.full(g.size, source(g)), kind)
        return lambda g: decode(source(g), kind)
    if width == 1:
        return source
    dtype = integer_dtype(kind)
    return lambda g: source(g).view(dtype)


def address_of(operand: Operand, width: int) -> Source:
    """Return how to compute an address, `[threads]` int64."""
    assert isinstance(operand, Address)
    source, offset = bits_of(operand.base, width), operand.offset
    return lambda g: np.broadcast_to(source(g).astype(np.int64) + offset, (g.size,))
