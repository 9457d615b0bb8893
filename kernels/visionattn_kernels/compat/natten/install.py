"""The name `natten` for this package, for code that imports NATTEN and cannot be edited."""

from __future__ import annotations

import sys
from types import ModuleType

from visionattn_kernels.compat.natten import functional, modules

OLD_PATHS = ("natten1d", "natten2d", "natten3d", "na1d", "na2d", "na3d", "experimental")
"""Modules of NATTEN that models import from; their functions and classes are in two files here."""


def install_as_natten() -> None:
    """Let `import natten` find this package until the process ends. A second call changes nothing.

    NATTEN itself, if it is installed, cannot be imported afterwards, so its kernels are no backend in this process.

    Raises:
        RuntimeError: Another natten is imported already.
    """
    ours = __package__
    present = sys.modules.get("natten")
    if present is sys.modules[ours]:
        return
    if present is not None:
        raise RuntimeError(
            f"natten {getattr(present, '__version__', '')} is imported already: call install_as_natten() before "
            "anything imports natten"
        )
    for name, module in list(sys.modules.items()):
        if name == ours or name.startswith(f"{ours}."):
            sys.modules["natten" + name.removeprefix(ours)] = module
    for path in OLD_PATHS:
        alias = ModuleType(f"natten.{path}")
        vars(alias).update({k: v for part in (functional, modules) for k, v in vars(part).items() if k[0] != "_"})
        sys.modules[alias.__name__] = alias
