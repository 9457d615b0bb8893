"""Read machine code of NVIDIA GPUs."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import triton

from kernels.bench.assembly import Code, Instruction

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")

STEMS = {
    "mufu": "MUFU",
    "global": "LDG|LDGSTS|STG|LD|ST|UTMALDG|UTMASTG|UBLKCP|RED|ATOMG?",
    "shared": "LDS|STS|LDSM|STSM|ATOMS|LDTM?|STTM?",
    "local": "LDL|STL",
    "shuffle": "SHFL|MOVM|REDUX",
    "tensor": r"\w*(?:[HIDBQO]|G)MMA|UTC\w*MMA",
    "integer": r"U?(?:IMAD|IADD3?|LEA|P?LOP3?|SHF|SHL|SHR|ISETP|V?IMNMX3?|VIADD|VIADDMNMX|IABS|BMSK|SGXT|POPC|FLO|BREV|"
    r"PRMT|SEL|I2I|IDP)",
    "float": r"[FHD](?:ADD|MUL|FMA|MNMX|SEL|SETP?|SWZADD)[23]?|F2F|F2FP|F2I\w*|I2FP?|FRND|FCHK",
}
"""Names without suffixes, by kind."""

PATTERNS = {kind: re.compile(stems) for kind, stems in STEMS.items()}


def read(cubin: bytes) -> Code:
    """Disassemble a kernel."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage, text[:1000]
    lines = [_read_line(*fields) for fields in LINE.findall(text)]
    return Code(lines, int(usage[1]), int(usage[2]))


def _read_line(address: str, predicate: str, name: str, operands: str) -> Instruction:
    target = re.search(r"0x([0-9a-f]+)\s*$", operands) if name.split(".")[0] == "BRA" else None
    always = name == "BRA" and not predicate and operands.startswith("0x")
    return Instruction(
        int(address, 16), name, operands, *_describe(name), int(target[1], 16) if target else None, always
    )


@lru_cache(maxsize=4096)
def _describe(name: str) -> tuple[str, int, int]:
    return kind_of(name), _multiplies(name), _loads(name)


def kind_of(name: str) -> str:
    """Return the kind of an instruction."""
    stem = name.partition(".")[0]
    if name.startswith("IMAD.MOV"):  # a move by the multiplier
        return "other"
    return next((kind for kind, pattern in PATTERNS.items() if pattern.fullmatch(stem)), "other")


def _multiplies(name: str) -> int:
    if name.startswith("HGMMA"):  # 64xNxK, by four warps
        m, n, k = map(int, name.split(".")[1].split("x"))
        return m * n * k // 4
    if name.startswith("HMMA"):  # 16816 is 16 x 8 x 16
        return 16 * 8 * int(name.split(".")[1][3:])
    return {"FFMA": 32, "FFMA2": 64}.get(name.partition(".")[0], 0)


def _loads(name: str) -> int:
    stem, *suffixes = name.split(".")
    if stem not in ("LDG", "LD", "LDGSTS"):
        return 0
    widths = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
    return next((widths[x] for x in suffixes if x in widths), 4)
