"""CONTRIBUTING.md: the table "Where is…" names files that hold these names."""

import re

import pytest

from tests.code_blocks import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| ([^|]*) \|$", TEXT, re.MULTILINE)


def test_table_has_the_rows_that_newcomers_need() -> None:
    rows = {what for what, _, _ in ROWS}
    assert rows >= {"relative bias in the CPU kernel", "EP's equation", "CMC and mAP", "the learning-rate schedule"}


@pytest.mark.parametrize(("what", "path", "names"), ROWS, ids=[what for what, _, _ in ROWS])
def test_file_holds_the_names(what: str, path: str, names: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.]+)`", names):
        for part in name.split("."):
            defined = rf"^\s*(?:def|class|template.*|void|static.*) ?{part}\b|^{part}\b.*=|void {part}\("
            assert re.search(defined, text, re.MULTILINE), f"{what}: {path} does not define {part}"
