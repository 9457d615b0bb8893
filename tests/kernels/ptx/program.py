"""A compiled kernel as steps, and its run over a grid."""

from __future__ import annotations

import numpy as np

from tests.kernels.ptx import tensor_cores, transfer
from tests.kernels.ptx.arithmetic import arithmetic_step, refuse, target_of
from tests.kernels.ptx.formats import UNSIGNED, Array, UnsupportedError, integer_dtype, is_float
from tests.kernels.ptx.global_memory import GlobalMemory
from tests.kernels.ptx.group import Group, RaceError, Step, bits_of
from tests.kernels.ptx.parser import Address, Instruction, Kernel, Register, Symbol, parse
from tests.kernels.ptx.shared_memory import SharedMemory

BYTES_AT_ONCE = 64 << 20
"""Shared memory and its records of all CTAs that run together."""

RECORD_BYTES = 12


class Program:
    """A kernel, ready to run.

    CTAs run in lockstep. Where they branch apart, those that are behind run first until they catch up. The threads of
    a CTA must branch alike, as Triton makes them, but for some arithmetic that a branch skips.
    """

    def __init__(self, ptx: str) -> None:
        self.kernel: Kernel = parse(ptx)
        self.arguments: dict[str, int | float] = {}
        self.steps: dict[int, list[Step]] = {}  # by block, made when it first runs
        self.grain = 4
        for block in self.kernel.blocks:
            for i in block.instructions:
                if i.parts[0] in ("ld", "st") and "shared" in i.opcode:
                    count = next((int(p[1:]) for p in i.parts if p in ("v2", "v4")), 1)
                    self.grain = min(self.grain, count * np.dtype(integer_dtype("u" + i.parts[-1][1:])).itemsize)

    def run(self, grid: int, shared: int, arguments: list[int | float], memory: GlobalMemory) -> None:
        """Run every CTA.

        Args:
            grid: Number of CTAs.
            shared: Bytes of shared memory.
            arguments: Values of the parameters; the scratch pointers that follow are null.
            memory: What the kernel may touch.

        Raises:
            RaceError: If threads touch the same memory without an order.
        """
        names = list(self.kernel.parameters)
        assert len(names) == len(arguments) + 2, f"{len(names)} parameters for {len(arguments)} arguments and 2 scratch"
        self.arguments = dict(zip(names, [*arguments, 0, 0], strict=True))
        each = max(1, BYTES_AT_ONCE // (shared // self.grain * RECORD_BYTES + shared + 1024))
        each = min(each, max(1, 65536 // self.kernel.threads))
        for first in range(0, grid, each):
            ctas = np.arange(first, min(first + each, grid))
            group = Group(
                ctas,
                self.kernel.threads,
                [None] * self.kernel.num_registers,
                SharedMemory.create(len(ctas), shared, self.grain),
                memory,
                np.zeros(len(ctas), np.int32),
            )
            self._run(group)
            if complaints := [*group.shared.complaints.values(), *memory.complaints.values()]:
                raise RaceError(f"{complaints[0]} (and {len(complaints) - 1} instructions more)")

    def _run(self, group: Group) -> None:
        waiting = {0: group}
        while waiting:
            number = min(waiting)
            group, block = waiting.pop(number), self.kernel.blocks[number]
            last = block.instructions[-1] if block.instructions else None
            self._execute(number, group)
            for follower, rows in self._branch(group, last, number):
                live = self.kernel.blocks[follower].live
                part = group if rows is None else group.select(rows, live)
                waiting[follower] = waiting[follower].join(part, live) if follower in waiting else part

    def _execute(self, number: int, group: Group, chosen: Array | None = None) -> None:
        """Execute a block, for the chosen threads; all by default."""
        block = self.kernel.blocks[number]
        if number not in self.steps:
            self.steps[number] = [self._decode(i) for i in block.instructions]
        with np.errstate(all="ignore"):
            for step, instruction in zip(self.steps[number], block.instructions, strict=True):
                try:
                    if chosen is None:
                        step(group)
                    else:
                        _execute_masked(step, target_of(instruction), group, chosen)
                except Exception as error:
                    error.add_note(f"in {self.kernel.name}, {instruction.where}")
                    raise

    def _branch(self, group: Group, last: Instruction | None, number: int) -> list[tuple[int, Array | None]]:
        """Return the next blocks, and the rows of the CTAs that go there; None for all."""
        if last is None or last.parts[0] not in ("bra", "ret"):
            return [(number + 1, None)]
        if last.parts[0] == "ret":
            if last.guard is not None:
                raise refuse(last)
            return []
        assert isinstance(last.operands[0], Symbol)
        target = self.kernel.labels[last.operands[0].name]
        if last.guard is None:
            return [(target, None)]
        taken = group.bits(last.guard).reshape(-1, group.threads) != last.negated
        if (taken != taken[:, :1]).any():
            if target != number + 2 or not self._is_plain(number + 1):
                raise UnsupportedError(f"threads of a CTA branch apart, which is not emulated: {last.where}")
            self._execute(number + 1, group, ~taken.reshape(-1))
            return [(target, None)]
        jumps = taken[:, 0]
        if jumps.all():
            return [(target, None)]
        if not jumps.any():
            return [(number + 1, None)]
        return [(target, np.flatnonzero(jumps)), (number + 1, np.flatnonzero(~jumps))]

    def _is_plain(self, number: int) -> bool:
        """Return whether a block does arithmetic alone, so that some threads of a warp may skip it."""
        return all(
            i.guard is None and arithmetic_step(i) is not None and isinstance(i.operands[0], Register)
            for i in self.kernel.blocks[number].instructions
        )

    def _decode(self, i: Instruction) -> Step:
        name = i.parts[0]
        if name in ("bra", "ret"):
            return lambda g: None
        if i.opcode.startswith("ld.param"):
            return self._parameter_step(i)
        for module in (transfer, tensor_cores):
            if name in module.STEPS:
                step = module.STEPS[name](i)
                if i.guard is None or name in ("ld", "st", "cp"):
                    return step
                if name != "mov":
                    raise refuse(i)
                return self._guarded(step, i)
        step = arithmetic_step(i)
        if step is None:
            raise refuse(i)
        return step if i.guard is None else self._guarded(step, i)

    def _guarded(self, step: Step, i: Instruction) -> Step:
        assert i.guard is not None
        target, guard = target_of(i), bits_of(i.guard, 1)
        return lambda g: _execute_masked(step, target, g, guard(g) != i.negated)

    def _parameter_step(self, i: Instruction) -> Step:
        target, kind = target_of(i), i.parts[-1]
        assert isinstance(i.operands[1], Address)
        assert isinstance(i.operands[1].base, Symbol)
        assert not i.operands[1].offset
        name = i.operands[1].base.name
        declared = self.kernel.parameters[name]

        def step(g: Group) -> None:
            value = self.arguments[name]
            if is_float(declared):
                bits = int(np.float32(value).view(np.uint32))
            else:
                bits = int(value) & ((1 << integer_dtype(declared).itemsize * 8) - 1)
            if kind[0] == "s":  # the parameter's own sign
                width = integer_dtype(kind).itemsize * 8
                bits = (bits & ((1 << width) - 1)) - (1 << width if bits >> (width - 1) & 1 else 0)
            g.write(target, np.array(bits & ((1 << target.width) - 1), UNSIGNED[target.width]))

        return step


def _execute_masked(step: Step, target: Register, group: Group, mask: Array) -> None:
    """Execute an instruction where a mask says so; in other threads, its target keeps what it held."""
    before = group.registers[target.number]
    step(group)
    after = group.bits(target)
    group.registers[target.number] = before
    group.write(target, after, mask)
