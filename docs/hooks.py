"""What mkdocs does beyond its configuration: a page that lies elsewhere in the repository, and Sphinx' roles."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: Any) -> Files:
    """Adds kernels/README.md with its images, under the same paths."""
    readme = ROOT / "kernels" / "README.md"
    for path in (readme, *sorted(readme.parent.glob("bench/results/*.png"))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name things as ``:class:`~package.Name```, of which readers want the name."""
    return re.sub(r":(?:class|func|meth|mod):<code>(?:~[\w.]*\.)?([\w.]+)</code>", r"<code>\1</code>", html)
