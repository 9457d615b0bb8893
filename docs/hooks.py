"""Additions to mkdocs: the version, pages from outside of docs/, and plain names in place of Sphinx' roles."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
WORDS = yaml.safe_load((ROOT / "docs" / "search.yml").read_text(encoding="utf-8"))
LAST = ("api/", "kernels/", "changelog.md", "results.md", "tutorial.ipynb")
"""Long pages with many words: the search ranks them behind those that answer a question."""


def on_config(config: Any) -> Any:
    """Name the version of the package, for the head and the foot of every page."""
    config.extra["version"] = version("visionattn")
    config.copyright = f"visionattn {config.extra['version']}, Apache-2.0"
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add CHANGELOG.md, and kernels/README.md with its images and measurements under the same paths."""
    readme = ROOT / "kernels" / "README.md"
    results = readme.parent / "bench" / "results"
    for path in (readme, *sorted(results.glob("*.png")), *sorted(results.glob("*.csv"))):
        add_file(files, config, path, path.relative_to(ROOT).as_posix())
    add_file(files, config, ROOT / "CHANGELOG.md", "changelog.md")
    return files


def add_file(files: Files, config: Any, path: Path, uri: str) -> None:
    """Add a file of the repository under an address of the site; its link for edits leads to the repository."""
    file = File.generated(config, uri, abs_src_path=str(path))
    file.edit_uri = f"../{path.relative_to(ROOT).as_posix()}"
    files.append(file)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Give the page its words for the search; turn links of the changelog, which begin in the root, into the site's."""
    uri = page.file.src_uri
    page.meta["tags"] = WORDS.get(uri, [])
    if uri.startswith(LAST):
        page.meta["search"] = {"boost": 0.1}
    return markdown.replace("](docs/", "](") if uri == "changelog.md" else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Show ``:class:`~package.Name``` of docstrings as the name alone, and mark short code, which is not broken."""
    html = re.sub(r":(?:class|func|meth|mod):<code>(?:~[\w.]*\.)?([\w.]+)</code>", r"<code>\1</code>", html)
    html = re.sub(r"<code>([^<\n]{1,40})</code>", r'<code class="short">\1</code>', html)
    return re.sub(r'<div class="[^"]*language-(?:bash|shell).*?</pre>', mark_options, html, flags=re.DOTALL)


def mark_options(block: re.Match[str]) -> str:
    """Mark the names of options in a block of commands as short."""
    return re.sub(r"(?<![\w-])--[\w.]+", r'<span class="short">\g<0></span>', block[0])
