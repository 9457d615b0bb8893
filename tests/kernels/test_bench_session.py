"""The GPU session: it runs to its end without a GPU, in bounded time, and measures nothing if results are wrong."""

import importlib.metadata
import json
import os
import random
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import timm
import torch

from kernels.bench import attention, gathered, memory, session, smoke, tune
from kernels.bench.report import read_rows
from kernels.bench.script import choose, run
from kernels.bench.session_parts import Command, Part, make_parts
from visionattn_kernels.provenance import provenance

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "kernels" / "bench" / "gpu_session.sh"
DATA = Path("data") / "cifar10"

RIGHT, WRONG = Command("calendar", ("2026", "1")), Command("calendar", ("no-year",))
ENDLESS = Command("timeit", ("-n", "1", "while True: pass"))


def gpu_commands(module: str) -> list[list[str]]:
    parts = make_parts("cuda", False, DATA, Path("results"))
    return [list(c.arguments) for part in parts for c in part.commands if c.module == f"kernels.bench.{module}"]


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


@pytest.mark.slow
def test_session_runs_to_its_end_on_a_cpu(tmp_path):
    results, out = tmp_path / "results", tmp_path / "out"
    out.mkdir()
    command = ["bash", str(SCRIPT), "--device", "cpu", "--quick", "--results", str(results)]
    environment = os.environ | {"OUT": str(out), "VISIONATTN_CACHE": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)  # of the tests; where it is set, each part would interpret kernels
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [part.name for part in make_parts("cpu", True, None, results)]
    table = done.stdout[done.stdout.index("part        status") :].splitlines()[1:]
    assert [line.split()[:2] for line in table] == [[name, "ok"] for name in names]
    written = {path.name for path in results.iterdir()}
    for path in results.glob("*.csv"):
        assert read_rows(path)[0]["hardware"]
        assert json.loads(path.with_suffix(".json").read_text())["versions"]["torch"]
    kinds = (
        "attention",
        "attention-flex",
        "attention-na2d",
        "attention-untuned",
        "memory",
        "gathered",
        "halonet",
        "tune",
    )
    assert written >= {f"{kind}-cpu.csv" for kind in kinds} | {f"{name}.log" for name in names}
    (archive,) = out.iterdir()
    with tarfile.open(archive) as packed:
        assert {"session-cpu.txt", "attention-cpu.csv", "smoke.log"} <= set(packed.getnames())


def test_parts_fit_into_the_time_of_a_lent_machine():
    parts = make_parts("cuda", False, None, Path("results"))
    assert sum(part.limit_s for part in parts) <= 28 * 60
    assert all(part.limit_s <= session.LONGEST_S <= 9 * 60 for part in parts)
    limits = {part.name: part.limit_s for part in parts}
    plan = re.findall(r"^#   \d\. gpu_session\.sh ([a-z0-9 ]+?)  +(\d+)", SCRIPT.read_text(), re.MULTILINE)
    assert sorted(name for names, _ in plan for name in names.split()) == sorted(limits)
    assert [int(seconds) for _, seconds in plan] == [sum(limits[x] for x in names.split()) for names, _ in plan]


def test_nothing_is_measured_if_results_are_wrong(tmp_path, capsys):
    parts = [Part("smoke", 60, (WRONG,), stops=True), Part("models", 60, (RIGHT,))]
    outcomes = session.run_parts(parts, tmp_path, quick=False)
    assert [(x.part, x.status) for x in outcomes] == [("smoke", "failed"), ("models", "not run")]
    assert "invalid int value: 'no-year'" in capsys.readouterr().out  # the end of the log


def test_correctness_is_never_skipped(tmp_path):
    parts = [Part("tests", 60, (RIGHT,), needs=("no_such_package",), stops=True), Part("models", 60, (RIGHT,))]
    assert [x.status for x in session.run_parts(parts, tmp_path, quick=False)] == ["failed", "not run"]


def test_failure_does_not_stop_the_other_parts(tmp_path):
    parts = [
        Part("memory", 60, (WRONG, RIGHT)),
        Part("fit", 60, (RIGHT,), needs=("no_such_package",)),
        Part("slots", 60, (RIGHT,)),
    ]
    outcomes = session.run_parts(parts, tmp_path, quick=False)
    assert [x.status for x in outcomes] == ["failed", "skipped", "ok"]
    assert outcomes[0].note == f"1 of 2 commands, see {tmp_path / 'memory.log'}"
    assert outcomes[1].note == "cannot import no_such_package"
    assert "January 2026" in (tmp_path / "memory.log").read_text()


def test_part_is_ended_after_its_time_and_others_get_what_is_left(tmp_path, monkeypatch):
    limits = []
    run_part = session.run_part
    monkeypatch.setattr(
        session, "run_part", lambda part, limit, *rest: limits.append(limit) or run_part(part, limit, *rest)
    )
    parts = [Part("a", 0.2, (ENDLESS,)), Part("b", 100, (RIGHT,)), Part("c", 7, (RIGHT,)), Part("d", 600, (RIGHT,))]
    outcomes = session.run_parts(parts, tmp_path, quick=False)
    assert [x.status for x in outcomes] == ["out of time", "ok", "ok", "ok"]
    used = [x.seconds for x in outcomes]
    assert limits == pytest.approx([0.2, 100.2 - used[0], 107.2 - used[0] - used[1], session.LONGEST_S])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--device", "cpu", "--quick", "smoke", "test"],
            "error: PART must be one of smoke, tests, tune, .*; got 'test'",
        ),
        (["--data", "no/such"], "error: --data must be a folder with train/CLASS and test/CLASS; got no/such"),
        (["--device", "cpu"], "error: --device cpu is a trial and needs --quick; .*"),
    ],
)
def test_bad_input_of_the_session_is_one_line(capsys, arguments, message):
    assert run(session.main, arguments) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(capsys.readouterr().err.removesuffix("\n"))


def test_checkout_that_is_not_installed_has_a_version(tmp_path):
    session.write_metadata(tmp_path)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    assert (found.name, found.version) == ("visionattn", importlib.metadata.version("visionattn"))


def test_copy_of_the_files_without_git_is_told_its_revision(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("VISIONATTN_REVISION", "0123abc")
    assert provenance(torch.device("cpu"))["git_revision"] == "0123abc"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_commands_for_a_gpu_are_understood(capsys):
    """They get as far as the device that is missing here."""
    modules = {"attention": attention, "gathered": gathered, "memory": memory, "smoke": smoke, "tune": tune}
    for name, module in modules.items():
        for arguments in gpu_commands(name):
            assert run(module.main, arguments) == 1
            assert capsys.readouterr().err.startswith("error: --device cuda asks for a CUDA device")


def test_commands_for_a_gpu_name_problems_peers_and_models_that_exist():
    for arguments in gpu_commands("attention"):
        problems = attention.choose_problems(option(arguments, "--only"), torch.device("cuda"), None, False)
        assert len(problems) >= 2
        choose("--peers", option(arguments, "--peers"), attention.PEERS)
    for arguments in gpu_commands("gathered"):
        choose("--models", option(arguments, "--models"), timm.list_models())


def test_drawn_problems_repeat():
    drawn = [[smoke.draw(random.Random(3), "x", 40) for _ in range(2)] for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_wrong_result_is_found(monkeypatch, capsys):
    monkeypatch.setattr(smoke, "SLACK", 0.0)
    monkeypatch.setattr("visionattn_kernels.testing.TINY", dict.fromkeys(smoke.DTYPES.values(), 0.0))
    assert smoke.main(["--quick", "--threads", "1", "--dtype", "bfloat16", "--random", "0"]) == 1
    said = capsys.readouterr()
    assert said.out.endswith("0 of 1 checks passed\n")
    assert said.err.startswith("error: stage 3 of NAT-Tiny, bfloat16, map (14, 14)")


def test_machine_whose_backend_is_another_is_refused():
    assert smoke.why_not_triton(torch.device("cpu")).startswith(("triton: cannot run", "triton: not chosen"))
