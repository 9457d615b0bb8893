"""Read machine code of NVIDIA GPUs: loops, kinds of instructions, registers."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"

KINDS = ("tensor", "mufu", "global", "shared", "local", "shuffle", "integer", "float", "other")

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")

INTEGER = re.compile(
    r"U?(IMAD|IADD|IADD3|LEA|LOP3|LOP|PLOP3|SHF|SHL|SHR|ISETP|IMNMX|IMNMX3|VIMNMX|VIMNMX3|VIADD|VIADDMNMX|IABS|BMSK|SGXT|"
    r"POPC|FLO|BREV|PRMT|SEL|I2I|IDP|ISCADD|XMAD)$"
)
FLOAT = re.compile(r"(F|H|D|BF|MUFU)[A-Z0-9]*$|[IF]2[FIP]?P?$|F2FP$|I2F\w*$|F2I\w*$")


class Instruction(NamedTuple):
    """One instruction: where it stands, its name with suffixes, its operands."""

    address: int
    name: str
    operands: str


class Usage(NamedTuple):
    """What a thread takes: registers, and bytes of stack, where registers are spilled."""

    registers: int
    stack: int


def disassemble(cubin: bytes) -> tuple[list[Instruction], Usage]:
    """Return the instructions of a kernel in order, and what a thread takes."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text[:1000]
    return [Instruction(int(a, 16), name, rest) for a, name, rest in LINE.findall(text)], Usage(
        int(found[1]), int(found[2])
    )


def kind_of(name: str) -> str:
    """Return the kind of an instruction by its name: one of `KINDS`."""
    stem = name.partition(".")[0]
    if name.startswith("IMAD.MOV"):
        return "other"
    if stem.endswith(("HMMA", "GMMA", "IMMA", "DMMA", "BMMA", "CMMA", "OMMA")) or re.match(r"UTC\w*MMA$", stem):
        return "tensor"
    if stem == "MUFU":
        return "mufu"
    if stem in ("LDG", "LDGSTS", "STG", "LD", "ST", "UTMALDG", "UBLKCP", "RED", "ATOMG"):
        return "global"
    if stem in ("LDS", "STS", "LDSM", "STSM", "ATOMS", "LDT", "STT", "LDTM", "STTM"):
        return "shared"
    if stem in ("LDL", "STL"):
        return "local"
    if stem in ("SHFL", "MOVM"):
        return "shuffle"
    if INTEGER.match(stem):
        return "integer"
    if FLOAT.match(stem):
        return "float"
    return "other"


def products(code: Sequence[Instruction]) -> int:
    """Count multiply-adds of matrix products in a stretch of code, per warp."""
    total = 0
    for x in code:
        if kind_of(x.name) == "tensor":
            shape = x.name.split(".")[1]
            if x.name.startswith("HGMMA"):  # 64xNxK by a group of four warps
                m, n, k = map(int, shape.split("x"))
                total += m * n * k // 4
            else:  # 16816: 16 x 8 x 16
                total += 16 * 8 * int(shape[len("168") :])
        elif x.name.startswith("FFMA"):
            total += 32
    return total


def loops(code: Sequence[Instruction]) -> list[Sequence[Instruction]]:
    """Return the innermost loops with matrix products, in order: tensor cores, or else most fused multiply-adds."""
    place = {x.address: i for i, x in enumerate(code)}
    spans = set()
    for i, x in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)\s*$", x.operands) if x.name.split(".")[0] in ("BRA", "BRX") else None
        if target and int(target[1], 16) <= x.address and x.address != int(target[1], 16):
            spans.add((place[int(target[1], 16)], i + 1))
    uses_tensor = any(kind_of(x.name) == "tensor" for x in code)

    def multiplies(span: tuple[int, int]) -> bool:
        body = code[slice(*span)]
        if uses_tensor:
            return any(kind_of(x.name) == "tensor" for x in body)
        return sum(x.name.startswith("FFMA") for x in body) >= 32

    spans = {span for span in spans if multiplies(span)}
    # Loops of one head are one loop with several ways back.
    widest = {start: max(stop for first, stop in spans if first == start) for start, _ in spans}
    inner = [
        (a, b) for a, b in widest.items() if not any((c, d) != (a, b) and a <= c and d <= b for c, d in widest.items())
    ]
    return [code[a:b] for a, b in sorted(inner)]


def count_kinds(code: Sequence[Instruction]) -> Counter[str]:
    """Count instructions by kind."""
    return Counter(kind_of(x.name) for x in code)


def load_widths(code: Sequence[Instruction]) -> Counter[int]:
    """Count loads from global memory by their width in bytes, per thread."""
    widths: Counter[int] = Counter()
    for x in code:
        parts = x.name.split(".")
        if parts[0] in ("LDG", "LD", "LDGSTS"):
            bits = next((int(p) for p in parts if p in ("64", "128", "256")), 32)
            if {"U8", "S8"} & set(parts):
                bits = 8
            if {"U16", "S16"} & set(parts):
                bits = 16
            widths[bits // 8] += 1
    return widths


def tensor_core(code: Sequence[Instruction]) -> str:
    """Return the instruction that multiplies matrices in a stretch of code, or "none"."""
    return next((x.name.partition(".")[0] for x in code if kind_of(x.name) == "tensor"), "none")
