"""The site of docs/: it builds without warnings, fetches nothing, and its search finds the pages."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.code_blocks import ROOT

DOCS = ROOT / "docs"
FETCHED = r"<(?:script|img)[^>]+src=[\"']?https?:|<link[^>]+stylesheet[^>]+https?:|data-md-component=[\"']?source"
"""Files of other hosts, and the theme's link that asks GitHub for the number of stars."""


def test_site_builds_and_its_search_finds_the_pages(tmp_path: Path) -> None:
    """One build: links, anchors, names of the API pages, and a place in the navigation for each page."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index.html", "tutorial/index.html", "kernels/index.html", "api/visionattn/index.html"):
        html = (tmp_path / page).read_text(encoding="utf-8")
        assert re.findall(FETCHED, html) == []
        assert f'md-source__fact--version">{version("visionattn")}<' in html
    changelog = (tmp_path / "changelog" / "index.html").read_text(encoding="utf-8")
    assert 'href="../fine_tune/"' in changelog
    assert "edit/main/CHANGELOG.md" in changelog
    if shutil.which("node"):
        check_search(tmp_path)


def check_search(site: Path) -> None:
    """Ask the site's own search for each word of docs/search.yml: the page is among the first three."""
    words = yaml.safe_load((DOCS / "search.yml").read_text(encoding="utf-8"))
    wanted = {str(word): address(page) for page, each in words.items() for word in each}
    assert len(wanted) == sum(map(len, words.values()))  # no word belongs to two pages
    command = ["node", DOCS / "search.mjs", site, *wanted]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = dict(json.loads(line) for line in lines)
    assert {word: pages[:3] for word, pages in found.items() if wanted[word] not in pages[:3]} == {}


def address(page: str) -> str:
    """Return the address of a page's source on the site."""
    folder = Path(page).with_suffix("") if Path(page).stem != "index" else Path(page).parent
    return "" if folder == Path() else f"{folder.as_posix()}/"


def test_pages_of_the_search_exist() -> None:
    pages = yaml.safe_load((DOCS / "search.yml").read_text(encoding="utf-8"))
    assert [page for page in pages if not (DOCS / page).is_file()] == []
