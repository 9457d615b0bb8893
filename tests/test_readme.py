"""README: its commands parse, the files it names exist, and its Python runs."""

import re

import pytest

from tests.code_blocks import ROOT, our_command, parse, read_blocks

README = ROOT / "README.md"
BLOCKS = read_blocks(README)
COMMANDS = [words for block in BLOCKS if block.language == "bash" for words in block.commands() if our_command(words)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_readme_commands_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(command, monkeypatch)


def test_readme_check_rejects_wrong_options(monkeypatch):
    with pytest.raises(Exception, match=r"unknown option --data\.rot"):
        parse(["python", "eval.py", "classify", "--data.rot", "x"], monkeypatch)


@pytest.mark.parametrize(
    "code",
    [block.code for block in BLOCKS if block.language == "python"],
    ids=lambda code: code.strip().splitlines()[0],
)
def test_readme_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_readme_names_only_files_that_exist():
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])((?:configs|kernels|visionattn|tests|docs|\.ci)/[\w./-]*[\w/])", text))
    named |= {link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link and "mailto:" not in link}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
