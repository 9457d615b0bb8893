"""Read assembly of AMD GPUs."""

from __future__ import annotations

import re

from kernels.bench.assembly import Code, Instruction

LINE = re.compile(
    r"^(?:(?P<label>\.LBB\w+):|\t(?P<name>(?:v|s|ds|global|buffer|flat|scratch)_\w+)\s*(?P<operands>.*))", re.MULTILINE
)

PREFIXES = {
    "tensor": "v_mfma|v_smfma",
    "mufu": "v_exp_f|v_log_f|v_rcp_|v_rsq_|v_sqrt_",
    "shuffle": "ds_bpermute|ds_permute|ds_swizzle|v_readlane|v_writelane|v_permlane|v_mov_b32_dpp",
    "global": "global_|buffer_|flat_",
    "shared": "ds_",
    "local": "scratch_",
    "other": "s_|v_mov_|v_accvgpr|v_nop",
    "float": r"v_\w+_(?:p?k?b?f16|f32|f64)",
    "integer": "v_",
}
"""Beginnings of names, by kind; the first that fits counts."""

PATTERNS = {kind: re.compile(prefixes) for kind, prefixes in PREFIXES.items()}


def read(assembly: str) -> Code:
    """Read a kernel and its metadata."""
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in LINE.finditer(assembly):
        if line["label"]:
            labels[line["label"]] = len(lines)
        else:
            lines.append((line["name"], line["operands"].partition(";")[0].strip()))
    instructions = []
    for i, (name, operands) in enumerate(lines):
        target = labels.get(operands) if name.startswith(("s_branch", "s_cbranch")) else None
        kind = next((kind for kind, pattern in PATTERNS.items() if pattern.match(name)), "other")
        figures = (kind, _multiplies(name), _loads(name))
        instructions.append(Instruction(i, name, operands, *figures, target, name == "s_branch"))
    registers, stack = (_metadata(assembly, name) for name in ("vgpr_count", "private_segment_fixed_size"))
    return Code(instructions, registers, stack)


def _metadata(assembly: str, name: str) -> int:
    found = re.search(rf"^ +\.{name}: +(\d+)", assembly, re.MULTILINE)
    assert found, name
    return int(found[1])


def _multiplies(name: str) -> int:
    shape = re.search(r"_(\d+)x(\d+)x(\d+)", name)
    if shape and name.startswith("v_mfma"):
        return int(shape[1]) * int(shape[2]) * int(shape[3])
    if re.match(r"v_pk_fma_f32", name):
        return 128
    return 64 if re.match(r"v_(?:fma|fmac|mac)_f32", name) else 0


def _loads(name: str) -> int:
    found = re.match(r"(?:global|buffer|flat)_load_(\w+)", name)
    if not found:
        return 0
    widths = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "ushort": 2, "ubyte": 1, "sbyte": 1}
    return next((n for word, n in widths.items() if found[1].startswith(word)), 4)
