"""The name `natten` for this package, for code that imports NATTEN and cannot be edited."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, DistributionFinder
from os import PathLike
from pathlib import Path
from types import ModuleType

from visionattn_kernels.compat.natten import functional, modules

VERSION = "0.17.5"
"""The release whose names these are."""

OLD_PATHS = ("natten1d", "natten2d", "natten3d", "na1d", "na2d", "na3d", "experimental")
"""Modules of NATTEN that models import from; their functions and classes are in two files here."""


class _Metadata(Distribution):
    """Metadata that `importlib.metadata` finds as natten; transformers asks for it."""

    def read_text(self, filename: str) -> str | None:
        """Return a file of the distribution; it has one."""
        return f"Metadata-Version: 2.1\nName: natten\nVersion: {VERSION}\n" if filename == "METADATA" else None

    def locate_file(self, path: str | PathLike[str]) -> Path:
        """Return the path itself: the distribution has no folder."""
        return Path(path)


class _Finder(DistributionFinder):
    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterable[Distribution]:
        """Return the distribution to who asks for natten by name."""
        return [_Metadata()] if context is not None and context.name == "natten" else []

    def find_spec(self, *args: object) -> None:
        """Return None: modules are found in `sys.modules`."""


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
    sys.meta_path.insert(0, _Finder())
