"""Prose of the packages: docstrings say the noun or begin with an imperative, and an image is called an image."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(
    ROOT / folder for folder in ("visionattn", "kernels/visionattn_kernels", "kernels/bench", "results", "docs")
)

FREE_RELATIVES = {"As", "How", "Of", "So", "That", "Those", "What", "Where", "Whether", "Which", "Who", "Whose"}
"""First words of no docstring: the noun is missing."""
NOUN_PHRASES = {"A", "An", "Both", "Each", "Every", "From", "Itself", "No", "One", "Some", "The", "Their", "These"}
"""First words of no function's docstring: the verb is missing."""
VERBS_IN_S = {"Access", "Address", "Compress", "Cross", "Discuss", "Express", "Guess", "Pass", "Process", "Suppress"}
"""Imperatives that end in s; any other first word in s is taken for the third person or a plural."""

IMAGE_SUFFIXES = {".cfg", ".cpp", ".cu", ".h", ".ipynb", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
MAY_SAY_PICTURE = {"CHANGELOG.md", "CONTRIBUTING.md", "tests/test_prose.py"}
OLD_NAMES = re.compile('"(--)?(num_)?pictures"')
"""A key that feature caches of 0.1.0 hold, and old options that hints name."""

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings() -> Iterator[tuple[str, Documented, str]]:
    """Yield the place, the node and the first word of every docstring of the packages."""
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, Documented) and (text := ast.get_docstring(node)):
                    line = node.body[0].lineno
                    yield f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}", node, text.split()[0].strip(",:;")


def is_noun(node: Documented) -> bool:
    """Return whether a docstring names a thing: a module, a class, a property or a registered model."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return True
    names = {ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property", "register_model"})


def test_docstrings_do_not_begin_with_a_free_relative() -> None:
    assert [place for place, _, word in docstrings() if word in FREE_RELATIVES] == []


def test_docstrings_of_functions_begin_with_an_imperative() -> None:
    wrong = [
        place
        for place, node, word in docstrings()
        if not is_noun(node) and (word in NOUN_PHRASES or (word.endswith("s") and word not in VERBS_IN_S))
    ]
    assert wrong == []


def test_tracked_files_say_image() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [
        name for name in listed.splitlines() if Path(name).suffix in IMAGE_SUFFIXES and name not in MAY_SAY_PICTURE
    ]
    wrong = [
        f"{name}:{number}: {line.strip()}"
        for name in names
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if "picture" in OLD_NAMES.sub("", line).lower()
    ]
    assert wrong == []
