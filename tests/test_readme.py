"""README: its commands parse, the files that it names exist, and its Python runs."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from visionattn.cli import evaluate, train
from visionattn.cli.errors import normalize

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


class Parsed(BaseException):
    """The command line is good; what would follow is the work."""


def blocks(language: str) -> list[str]:
    """Code blocks of one language, in the order of the text."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """Each ``python train.py …`` and ``python eval.py …`` of the bash blocks, from the script's name on."""
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|\|", line):
                words = shlex.split(part, comments=True)
                scripts = [i for i, word in enumerate(words) if word in ("train.py", "eval.py")]
                if scripts and runs_python(words[: scripts[0]]):
                    yield words[scripts[0] :]


def runs_python(words: list[str]) -> bool:
    return bool(words) and Path(words[-1]).name.startswith("python")


def parse(script: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the script's command as far as its arguments are parsed."""
    mains: dict[str, Callable[[list[str]], None]] = {"train.py": train.main, "eval.py": evaluate.main}
    parser = {"train.py": train.TrainingParser, "eval.py": evaluate.EvaluationParser}[script]
    original = parser.parse_args
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

    monkeypatch.setattr(parser, "parse_args", parse_args)
    with pytest.raises(Parsed):
        mains[script](normalize(argv))


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_commands_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(command[0], command[1:], monkeypatch)


def test_a_wrong_option_would_not_pass(monkeypatch):
    with pytest.raises(Exception, match=r"unknown option --data\.rot"):
        parse("eval.py", ["classify", "--data.rot", "x"], monkeypatch)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[0])
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_named_files_exist():
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])((?:configs|kernels|visionattn|tests|docs|\.ci)/[\w./-]*[\w/])", text))
    named |= {link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link and "mailto:" not in link}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
