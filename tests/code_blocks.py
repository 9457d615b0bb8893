"""Code blocks of Markdown pages: found, their commands parsed or run in this process.

What stands in braces behind the language of a block says what a test does with it: nothing, it runs; ``{ .slow }``, it
runs where tests marked slow do; ``{ .parse }``, for what wants GPUs, large data or hours, its options are parsed.
"""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path

import pytest

from visionattn.__main__ import COMMANDS, PARENTS
from visionattn.__main__ import main as console
from visionattn.cli.errors import normalize
from visionattn.cli.parsing import ConciseParser

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w+)(?: *\{([^}\n]*)\})?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_OURS = (
    *("pip", "uv", "docker", "pytest", "pre-commit", "mkdocs", "tensorboard", "wandb"),
    *("unzip", "cat", "ls", "head"),
)
"""Programs that pages may name and tests do not run."""


class Parsed(BaseException):
    """The command line was parsed; the work itself is skipped."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what stands behind the fence.
        classes: what stands there in braces, without dots.
        line: number of its first line in the page.
        code: its text.
    """

    language: str
    classes: frozenset[str]
    line: int
    code: str

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command of a shell block."""
        for line in self.code.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
            lexer.whitespace_split = True
            for between, words in groupby(lexer, lambda word: set(word) <= set("&|;")):
                if not between:
                    yield list(words)


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            match[1],
            frozenset(re.findall(r"\.(\w+)", match[2] or "")),
            text.count("\n", 0, match.start(3)) + 1,
            match[3],
        )
        for match in FENCE.finditer(text)
    ]


def our_command(words: list[str]) -> list[str] | None:
    """Return ``[FILE.py, …]`` or ``[-m, MODULE, …]`` of a command that runs Python, else None."""
    if words[0] == "visionattn":
        return ["-m", *words]
    start = next((i for i, word in enumerate(words) if word.endswith(".py") or word == "-m"), 0)
    python = any(Path(word).name.startswith(("python", "torchrun")) for word in words[:start])
    return words[start:] if python else None


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the arguments of a command of ours; other commands are ignored."""
    command = our_command(words) or [""]
    if command[:2] == ["-m", "visionattn"]:
        command = command[2:]
    name, argv = command[0].removesuffix(".py"), command[1:]
    if name not in PARENTS:
        argv = command
        if name not in COMMANDS:
            return
    original = ConciseParser.parse_args
    depth = 0

    def parse_args(self, *args, **kwargs):
        # A subcommand is parsed within its command: the work begins when the outermost is done.
        nonlocal depth
        depth += 1
        try:
            parsed = original(self, *args, **kwargs)
        finally:
            depth -= 1
        if not depth:
            raise Parsed
        return parsed

    with monkeypatch.context() as patched:
        patched.setattr(ConciseParser, "parse_args", parse_args)
        with pytest.raises(Parsed):
            import_module(PARENTS.get(name) or COMMANDS[name]).main(normalize(argv))


def execute(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of ours in this process, without new imports, and check that it succeeds."""
    command = our_command(words)
    if command is None:
        assert words[0] in NOT_OURS, f"neither ours nor known: {shlex.join(words)}; mark the block {{ .parse }}"
        return
    module = command[0] == "-m"
    target, *argv = command[1:] if module else command
    status: object = None
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", [target, *argv])
        try:
            if target == "visionattn":
                status = console()
            elif module:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / target), run_name="__main__")
        except SystemExit as end:
            status = end.code
    assert not status, f"{shlex.join(words)} ended with {status}"
