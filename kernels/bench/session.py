"""Run the GPU session: correctness first, then all measurements, each part in a limited time.

    bash kernels/bench/gpu_session.sh                      # all parts, 28 minutes at most
    bash kernels/bench/gpu_session.sh smoke tests          # some of them
    bash kernels/bench/gpu_session.sh --device cpu --quick # small problems, to see that everything runs

Result files, with hardware and versions, and a log per part are written to --results. If the environment variable OUT
names a folder, they are also packed there after every part, as one archive. A part that fails or takes too long does
not stop the others, except smoke and tests: without right results nothing is measured. A part that needs a package that
cannot be imported is skipped. The exit status is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kernels.bench.session_parts import Command, Part, make_parts

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
LONGEST_S = 9 * 60
"""No part takes longer: some machines allow commands of ten minutes."""

PACKED = {".csv", ".json", ".log", ".txt", ".yaml"}
TAIL = 20
"""Lines of a log that are shown if a part fails."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a part: "ok", "failed", "out of time", "skipped" or "not run", with a note."""

    part: str
    status: str
    seconds: float = 0.0
    note: str = ""


def main(argv: list[str] | None = None) -> int:
    """Run the parts that are asked for; return exit status 0 if none failed."""
    args = _parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        results = _results_folder(args, Path(folder))
        parts = {part.name: part for part in make_parts(args.device, args.quick, args.data, results)}
        for name in args.parts:
            if name not in parts:
                raise ValueError(f"PART must be one of {', '.join(parts)}; got {name!r}")
        chosen = [part for name, part in parts.items() if name in (args.parts or parts)]
        print(f"results: {results}", flush=True)
        with _environment(Path(folder)):
            outcomes = run_parts(chosen, results, args.quick)
            summary = summarise(outcomes)
            (results / f"session-{args.device}.txt").write_text(summary + "\n", encoding="utf-8")
            pack(results, chosen)
        print(f"\n{summary}", flush=True)
    return int(any(outcome.status not in ("ok", "skipped") for outcome in outcomes))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_session.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to run, in the session's order (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small problems; writes nothing without --results or OUT")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as {train,test}/CLASS/* (default: the embedded digits)")
    parser.add_argument("--results", type=Path, help="folder of result files (default: kernels/bench/results)")
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.quick:
        raise ValueError("--device cpu is a trial and needs --quick; the scripts of kernels/bench measure CPUs")
    if args.data is not None:
        if not (args.data / "train").is_dir():
            raise ValueError(f"--data must be a folder with train/CLASS and test/CLASS; got {args.data}")
        args.data = args.data.resolve()
    return args


def _results_folder(args: argparse.Namespace, temporary: Path) -> Path:
    results: Path = args.results or (temporary / "results" if args.quick else RESULTS)
    results.mkdir(parents=True, exist_ok=True)
    return results.resolve()


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Let commands find measured tiles, and the version of a checkout that is not installed."""
    before = dict(os.environ)
    os.environ.setdefault("VISIONATTN_CACHE", str(Path.home() / ".cache" / "torch" / "visionattn"))
    try:
        importlib.metadata.version("visionattn")
    except importlib.metadata.PackageNotFoundError:
        write_metadata(folder)
        sys.path.append(str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def write_metadata(folder: Path) -> None:
    """Write what an installation would tell of the package: its name and version."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    place = folder / f"{project['name']}-{project['version']}.dist-info"
    place.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (place / "METADATA").write_text(text, encoding="utf-8")


def run_parts(parts: Sequence[Part], results: Path, quick: bool) -> list[Outcome]:
    """Run parts in turn; the time that one leaves over is given to those after it."""
    outcomes: list[Outcome] = []
    saved, stopped = 0.0, False
    for part in parts:
        missing = [name for name in part.needs if find_spec(name) is None]
        if stopped:
            outcomes.append(Outcome(part.name, "not run", note="results are not right"))
            continue
        if missing:  # correctness is never skipped
            status = "failed" if part.stops else "skipped"
            outcomes.append(Outcome(part.name, status, note=f"cannot import {', '.join(missing)}"))
        else:
            limit = LONGEST_S if quick else min(part.limit_s + saved, LONGEST_S)
            outcomes.append(run_part(part, limit, results, quick))
            pack(results, parts)
        saved += part.limit_s - outcomes[-1].seconds
        stopped = part.stops and outcomes[-1].status in ("failed", "out of time")
        print(f"{part.name}: {outcomes[-1].status} {outcomes[-1].note}".rstrip(), flush=True)
    return outcomes


def run_part(part: Part, limit: float, results: Path, quick: bool) -> Outcome:
    """Run the commands of a part in `limit` seconds; the last lines of its log are shown if one fails."""
    log, start, failed = results / f"{part.name}.log", time.monotonic(), 0
    log.write_text("", encoding="utf-8")
    for command in part.commands:
        print(f"{part.name}: {command}", flush=True)
        left = limit - (time.monotonic() - start)
        status = (run_in_fork if quick else run_in_process)(command, log, left)
        if status is None:
            return Outcome(part.name, "out of time", time.monotonic() - start, f"{limit:.0f} s, see {log}")
        if status:
            failed += 1
            print("".join(f"  {line}\n" for line in log.read_text(errors="replace").splitlines()[-TAIL:]), end="")
    note = f"{failed} of {len(part.commands)} commands, see {log}" if failed else ""
    return Outcome(part.name, "failed" if failed else "ok", time.monotonic() - start, note)


def run_in_process(command: Command, log: Path, seconds: float) -> int | None:
    """Run a command in an interpreter of its own; return its exit status, None if `seconds` were not enough."""
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", command.module, *command.arguments],
            cwd=ROOT,
            env=os.environ | command.environment | {"PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process.pid)
            process.wait()


def run_in_fork(command: Command, log: Path, seconds: float) -> int | None:
    """Run a command in a fork of this process, which has imported the packages; return the same."""
    with suppress(ImportError):  # the parts say what they lack
        import visionattn.cli.training  # noqa: F401
    process = multiprocessing.get_context("fork").Process(target=_become, args=(command, log))
    process.start()
    try:
        process.join(seconds)
        return process.exitcode
    finally:
        assert process.pid is not None
        end_group(process.pid)
        process.kill()
        process.join()


def _become(command: Command, log: Path) -> None:
    os.setpgid(0, 0)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ |= command.environment
    sys.argv = [command.module, *command.arguments]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def end_group(leader: int) -> None:
    """End the processes of a group."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(leader, signal.SIGKILL)


def pack(results: Path, parts: Sequence[Part]) -> None:
    """Write result files and measured tiles to one archive in the folder OUT, if that is set; the parts name it."""
    if not (out := os.environ.get("OUT")):
        return
    tiles = Path(os.environ["VISIONATTN_CACHE"])
    with tarfile.open(Path(out) / f"session-{parts[0].name}-{parts[-1].name}.tar.gz", "w:gz") as archive:
        for folder, pattern in ((results, "**/*"), (tiles, "triton_tiles/*")):
            for file in sorted(folder.glob(pattern)):
                if file.suffix in PACKED:
                    archive.add(file, file.relative_to(folder))


def summarise(outcomes: Sequence[Outcome]) -> str:
    """Return a table of what became of the parts."""
    lines = [f"{'part':12}{'status':14}{'seconds':>8}  note"]
    lines += [f"{x.part:12}{x.status:14}{x.seconds:8.0f}  {x.note}".rstrip() for x in outcomes]
    return "\n".join(lines)


if __name__ == "__main__":
    from kernels.bench.script import run

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended
    sys.exit(run(main))
