"""A model in a process of its own, under this or an earlier revision: the other end of model_worker.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WORKER = Path(__file__).with_name("model_worker.py")
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Revision:
    """An environment in which a revision of this project is installed.

    Attributes:
        python: Executable of its environment.
        folder: Its files, which then come before what is installed; None for what is installed.
    """

    python: str = sys.executable
    folder: Path | None = REPOSITORY

    def environment(self, threads: int) -> dict[str, str]:
        """Return the variables of a process."""
        # Other scripts lie beside the worker, under names of common packages.
        changed = {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
        if self.folder is not None:
            changed["PYTHONPATH"] = os.pathsep.join(
                map(str, (self.folder.resolve(), self.folder.resolve() / "kernels"))
            )
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | changed


class ModelProcess:
    """A worker that holds one model and sleeps between commands; a context that ends it.

    Attributes:
        facts: Folder and versions of the revision; None if it does not know the model.
    """

    def __init__(self, revision: Revision, network: str, batch: int, device: str, threads: int) -> None:
        """Start the worker.

        Raises:
            ValueError: It failed.
        """
        settings = {"network": network, "batch": batch, "device": device, "threads": threads}
        self.network = network
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            [revision.python, str(WORKER), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=revision.environment(threads),
            cwd=revision.folder,
        )
        self.facts: dict[str, str] | None = self._receive()

    def ask(self, command: str, *arguments: object) -> Any:
        """Return the answer to a command.

        Raises:
            ValueError: It failed; the message is that of the worker.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the reason is in the log
            self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
            self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ValueError(f"the process of {self.network} ended: {said[-1]}")
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(f"{self.network}: {reply['error']}")
        return reply["answer"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
