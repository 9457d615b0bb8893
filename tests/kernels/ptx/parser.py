"""Read a kernel's PTX: parameters, registers, and instructions in basic blocks."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from functools import cached_property

WIDTHS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64}
TYPES = re.compile(r"(?:pred|(?:[busf]|bf|tf)(?:8|16|32|64)(?:x2)?)$")


@dataclass(frozen=True)
class Register:
    """A register: number in the register file, and bits."""

    number: int
    width: int


@dataclass(frozen=True)
class Immediate:
    """A literal: a bit pattern, of two's complement if negative."""

    bits: int


@dataclass(frozen=True)
class Symbol:
    """A name: a special register, a parameter, a label or an array in memory."""

    name: str


@dataclass(frozen=True)
class Address:
    """A place in memory."""

    base: Register | Symbol | Immediate
    offset: int


Operand = Register | Immediate | Symbol | Address | tuple["Operand", ...]


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: As it is written, `add.s32`.
        operands: In order; vectors and pairs are tuples.
        guard: Predicate register, or None.
        negated: Whether the instruction runs where the guard is false.
        where: Line and text, for messages.
    """

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    negated: bool
    where: str

    @cached_property
    def parts(self) -> list[str]:
        """The opcode, cut at its dots."""
        return self.opcode.split(".")

    @property
    def types(self) -> list[str]:
        """The types among the parts."""
        return [part for part in self.parts[1:] if TYPES.match(part)]

    def registers(self) -> list[Register]:
        """Return all registers of the operands and the guard."""
        found = [] if self.guard is None else [self.guard]
        stack = list(self.operands)
        while stack:
            operand = stack.pop()
            if isinstance(operand, tuple):
                stack += operand
            elif isinstance(operand, Address):
                stack.append(operand.base)
            elif isinstance(operand, Register):
                found.append(operand)
        return found


@dataclass
class Block:
    """Instructions without a branch between them; `follows` holds numbers of the blocks that may come next."""

    instructions: list[Instruction] = field(default_factory=list)
    follows: list[int] = field(default_factory=list)
    live: set[int] = field(default_factory=set)  # registers that hold something when the block starts


@dataclass
class Kernel:
    """A parsed kernel.

    Attributes:
        name: Of the entry.
        parameters: Names and types, in order.
        threads: In a thread block.
        num_registers: Size of the register file.
        blocks: In the order of the text.
        labels: Numbers of the blocks that labels name.
    """

    name: str
    parameters: dict[str, str]
    threads: int
    num_registers: int
    blocks: list[Block]
    labels: dict[str, int]


class _Registers:
    """Numbers registers by name."""

    def __init__(self, text: str) -> None:
        self.prefixes = {
            prefix: WIDTHS[kind] for kind, prefix in re.findall(r"\.reg \.(\w+)\s+(%\w+?)<\d+>", text)
        }  # fmt: skip
        self.found: dict[str, Register] = {}
        self.local: dict[str, Register] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.local or name.rstrip("0123456789") in self.prefixes

    def __getitem__(self, name: str) -> Register:
        if name in self.local:
            return self.local[name]
        if name not in self.found:
            self.found[name] = Register(len(self.found), self.prefixes[name.rstrip("0123456789")])
        return self.found[name]

    def declare(self, statement: str) -> None:
        """Number the registers of inline assembly: `.reg .b16 x, y` between braces."""
        _, kind, names = statement.split(None, 2)
        for name in names.split(","):
            unique = f"{name.strip()}#{len(self.found)}"
            self.found[unique] = self.local[name.strip()] = Register(len(self.found), WIDTHS[kind.lstrip(".")])


def parse(text: str) -> Kernel:
    """Parse the only entry of a PTX text."""
    entry = re.search(r"\.visible \.entry (\S+)\((.*?)\)\s*(.*?)\{\n(.*?)\n\}", text, re.DOTALL)
    assert entry, "no .entry in the PTX"
    name, head, directives, body = entry.groups()
    parameters = {n: kind for kind, n in re.findall(r"\.param \.(\w+)(?: \.ptr[^,\n]*?)? (\w+)(?=,|\n|$)", head)}
    threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", directives)
    assert threads, "no .reqntid or .maxntid in the PTX"
    registers = _Registers(body)
    targets = set(re.findall(r"\bbra(?:\.uni)?\s+(\S+);", body))
    blocks, labels = [Block()], {}
    for number, raw in enumerate(body.splitlines(), text[: entry.start(4)].count("\n") + 1):
        line = raw.split("//")[0].strip()
        if line.endswith(":"):
            if line[:-1] in targets:
                blocks.append(Block())
                labels[line[:-1]] = len(blocks) - 1
            continue
        for statement in line.split(";"):
            statement = statement.strip()
            if statement.startswith(("{", "}")):  # inline assembly has registers of its own
                registers.local = {}
                statement = statement[1:].strip()
            if statement.startswith(".reg") and "<" not in statement:
                registers.declare(statement)
            if not statement or statement.startswith((".loc", ".pragma", ".reg")):
                continue
            instruction = _parse_instruction(statement, registers, f"line {number}: {_short(statement)}")
            blocks[-1].instructions.append(instruction)
            if instruction.parts[0] in ("bra", "ret"):
                blocks.append(Block())
    for index, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        if last is None or last.guard is not None or last.parts[0] not in ("bra", "ret"):
            block.follows.append(index + 1)
        if last is not None and last.parts[0] == "bra":
            assert isinstance(last.operands[0], Symbol)
            block.follows.append(labels[last.operands[0].name])
    _find_live(blocks)
    return Kernel(name, parameters, int(threads[1]), len(registers.found), blocks, labels)


def _find_live(blocks: list[Block]) -> None:
    """Fill in which registers blocks need; what an instruction may write counts as read unless it surely writes it."""
    reads, writes = [], []
    for block in blocks:
        read: set[int] = set()
        written: set[int] = set()
        for instruction in block.instructions:
            first = instruction.operands[0] if instruction.operands else ()
            targets = [x for x in (first if isinstance(first, tuple) else (first,)) if isinstance(x, Register)]
            overwrites = instruction.guard is None and instruction.parts[0] not in ("wgmma", "st", "stmatrix")
            used = [r.number for r in instruction.registers()]
            if overwrites:
                for target in targets:
                    used.remove(target.number)
            read |= set(used) - written
            if overwrites:
                written |= {target.number for target in targets}
        reads.append(read)
        writes.append(written)
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(blocks))):
            after = set().union(*(blocks[i].live for i in blocks[index].follows if i < len(blocks)))
            live = reads[index] | (after - writes[index])
            changed |= live != blocks[index].live
            blocks[index].live = live


def _short(statement: str) -> str:
    """Return a statement with little of its long vectors."""
    return re.sub(r"\{([^{}]{20})[^{}]*\}", r"{\1...}", " ".join(statement.split()))


def _parse_instruction(text: str, registers: _Registers, where: str) -> Instruction:
    guard, negated = None, False
    if text.startswith("@"):
        name, text = text[1:].split(None, 1)
        negated = name.startswith("!")
        guard = registers[name.lstrip("!")]
    opcode, *rest = text.split(None, 1)
    operands = tuple(_parse_operand(x, registers) for x in _split(rest[0])) if rest else ()
    return Instruction(opcode, operands, guard, negated, where)


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    return [x.strip() for x in re.split(r",(?![^{\[]*[}\]])", text) if x.strip()]


def _parse_operand(text: str, registers: _Registers) -> Operand:
    if text.startswith("{"):
        return tuple(_parse_operand(x, registers) for x in _split(text[1:-1]))
    if "|" in text:
        return tuple(_parse_operand(x, registers) for x in text.split("|"))
    if text.startswith("["):
        base, *offset = re.split(r"\+", text[1:-1].replace(" ", ""))
        place = _parse_operand(base, registers)
        assert isinstance(place, Register | Symbol | Immediate), text
        return Address(place, int(offset[0], 0) if offset else 0)
    if text in registers:
        return registers[text]
    if re.match(r"0[fF][0-9a-fA-F]{8}$", text):
        return Immediate(int(text[2:], 16))
    if re.match(r"0[dD][0-9a-fA-F]{16}$", text):
        return Immediate(struct.unpack("<q", struct.pack("<Q", int(text[2:], 16)))[0])
    if re.match(r"-?(0[xX][0-9a-fA-F]+|\d+)U?$", text):
        return Immediate(int(text.rstrip("U"), 0))
    return Symbol(text)
