"""The audit of dependencies in CI, on answers of pip-audit."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
VULNERABLE = {
    "name": "left",
    "version": "1",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}],
}
SOUND = {"name": "right", "version": "1", "vulns": []}
UNKNOWN = {"name": "far", "skip_reason": "not found"}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "status", "last"),
    [
        ([SOUND, UNKNOWN], 0, "audit: 0 vulnerabilities in 1 packages; 1 could not be asked"),
        ([SOUND, VULNERABLE], 1, "audit: 1 vulnerabilities in 2 packages; 0 could not be asked"),
        ([UNKNOWN], 0, "audit: nothing is known of 1 packages, as the service has no answer for any"),
    ],
)
def test_known_vulnerabilities_fail_and_silence_does_not(
    packages: list[dict[str, Any]], status: int, last: str, audit: ModuleType
) -> None:
    found, lines = audit.judge(packages)
    assert (found, lines[-1]) == (status, last)


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_allowed_vulnerability_is_printed_with_its_reason(
    name: str, audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(audit.ALLOWED, name, "we do not call it")
    status, lines = audit.judge([VULNERABLE])
    assert status == 0
    assert lines[0] == "left 1: PYSEC-1, allowed: we do not call it"


@pytest.mark.parametrize("failure", ["no output", "timeout", "not installed"])
def test_audit_without_an_answer_ends_with_one_line(
    failure: str, audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*args: Any, **kwargs: Any) -> Any:
        if failure == "timeout":
            raise subprocess.TimeoutExpired("pip-audit", 1)
        if failure == "not installed":
            raise FileNotFoundError
        return SimpleNamespace(stdout="")

    monkeypatch.setattr(subprocess, "run", ask)
    assert audit.main() == 0
    out = capsys.readouterr().out
    assert out.startswith("audit: nothing is known")
    assert out.count("\n") == 1


def test_audit_reads_the_answer(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = SimpleNamespace(stdout=json.dumps({"dependencies": [VULNERABLE], "fixes": []}))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: answer)
    assert audit.main() == 1
    assert capsys.readouterr().out.startswith("left 1: PYSEC-1, fixed in 2\n")
