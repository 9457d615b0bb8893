"""Packages whose public names are imported upon first use, and modules that are imported after others."""

import gc
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__`, which imports a public name from its module, and its `__dir__`.

    Args:
        package: `__name__` of the package, which also lists the names in `__all__`.
        modules: Names by module below the package, separated by spaces; a module may name itself.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{homes[name]}")
        return module if name == homes[name] else getattr(module, name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, names


def import_program(module: str) -> Any:
    """Return a module that a program needs for as long as it runs, imported without garbage collection.

    All that imports make is kept, but the collector would look at it again and again: during the imports, and at the
    end of the process. It takes a third of the time of a command's help.
    """
    if module in sys.modules:
        return sys.modules[module]
    enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def import_after(package: str, module: str) -> None:
    """Import a module as soon as a package has been imported: now, if it has been."""
    if package in sys.modules:
        import_module(module)
    else:
        sys.meta_path.insert(0, _Follower(package, module))


class _Follower(MetaPathFinder):
    """Finder that finds a package as the other finders do, and lets a module follow it once."""

    def __init__(self, package: str, module: str) -> None:
        self.package, self.module = package, module

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Return the package's spec, with a loader that also imports the module."""
        if fullname != self.package:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec: Any = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._follow(spec.loader.exec_module)
        return spec

    def _follow(self, execute: Callable[[Any], None]) -> Callable[[Any], None]:
        def exec_module(module: Any) -> None:
            execute(module)
            # A loader may be that of all modules of an archive.
            if module.__name__ == self.package and self in sys.meta_path:
                sys.meta_path.remove(self)
                import_module(self.module)

        return exec_module
