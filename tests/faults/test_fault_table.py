"""The table of faults in README.md, beside this file, agrees with the tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)(?:\[([^]]+)\])?`")


def rows() -> list[list[str]]:
    """Return the four cells of each fault."""
    lines = (HERE / "README.md").read_text(encoding="utf-8").splitlines()
    table = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in lines if line.startswith("|")]
    return [cells for cells in table if cells[0].strip(" -") not in ("", "fault")]


def functions(path: Path) -> Iterator[tuple[str, list[ast.AST]]]:
    """Yield each test of a file, and the nodes of its decorators."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name, [part for decorator in node.decorator_list for part in ast.walk(decorator)]


def test_table_names_only_tests_that_exist() -> None:
    known = {
        path.name: {test: {part.value for part in parts if isinstance(part, ast.Constant)} for test, parts in found}
        for path in HERE.parent.rglob("test_*.py")
        for found in [functions(path)]
    }
    for cells in rows():
        assert len(cells) == 4, cells
        named = NAMED.findall(cells[3])
        assert named, f"no test: {cells}"
        assert not NAMED.sub("", cells[3]).strip(" ,"), f"not the name of a test: {cells}"
        for file, test, case in named:
            assert test in known.get(file, {}), f"no {file}::{test}: {cells}"
            assert not case or case in known[file][test], f"{file}::{test} has no case {case!r}: {cells}"


def test_table_names_every_test_of_this_folder() -> None:
    """A test whose cases have names needs a row for each case, or one for the whole test."""
    named = {place for cells in rows() for place in NAMED.findall(cells[3])}
    for path in sorted(set(HERE.glob("test_*.py")) - {Path(__file__)}):
        for test, parts in functions(path):
            cases = {
                part.value.value
                for part in parts
                if isinstance(part, ast.keyword) and part.arg == "id" and isinstance(part.value, ast.Constant)
            }
            missing = {case for case in cases or {""} if (path.name, test, case) not in named}
            assert not missing or (path.name, test, "") in named, f"in no row: {path.name}::{test} {sorted(missing)}"
