"""Additions to mkdocs: the page kernels/README.md, and plain names in place of Sphinx' roles."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: Any) -> Files:
    """Add kernels/README.md with its images and measurements, under the same paths."""
    readme = ROOT / "kernels" / "README.md"
    results = readme.parent / "bench" / "results"
    for path in (readme, *sorted(results.glob("*.png")), *sorted(results.glob("*.csv"))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Show ``:class:`~package.Name``` of docstrings as the name alone."""
    return re.sub(r":(?:class|func|meth|mod):<code>(?:~[\w.]*\.)?([\w.]+)</code>", r"<code>\1</code>", html)
