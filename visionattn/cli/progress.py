"""Progress of long loops: a bar on a terminal, elsewhere at least a line per minute."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import Progress as Bar

from visionattn.progress import Progress

LINE_EVERY = 60.0
"""Seconds."""


@contextmanager
def show_progress(description: str, unit: str = "steps") -> Iterator[Progress]:
    """Show progress on stderr; the block calls the function that it is given."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Bar(console=console, transient=True) as bar:
            task = bar.add_task(description, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        with _Lines(description, unit) as lines:
            yield lines.update


class LightningProgress(Callback):
    """Show the progress of validate, test and predict."""

    def __init__(self) -> None:
        self._shown = ExitStack()
        self._progress: Progress | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start, in the first process."""
        if trainer.is_global_zero:
            self._progress = self._shown.enter_context(show_progress(_name_of(trainer), "batches"))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch."""
        if self._progress is not None:
            loops = {
                "validate": trainer.num_val_batches,
                "test": trainer.num_test_batches,
                "predict": trainer.num_predict_batches,
            }
            total = sum(loops[_name_of(trainer)])
            self._progress(batch_idx + 1, None if total == float("inf") else int(total))  # unknown for a stream

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self._shown.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End."""
        self._shown.close()

    on_validation_start = on_test_start = on_predict_start
    on_validation_batch_end = on_test_batch_end = on_predict_batch_end
    on_validation_end = on_test_end = on_predict_end


def _name_of(trainer: Trainer) -> str:
    """Return validate, test or predict."""
    return "" if trainer.state.fn is None else trainer.state.fn.value


class _Lines:
    """Write a line if no loop has written one for a minute, even if no step has ended."""

    written = time.monotonic()
    """Time of the last line in this process, or of its start."""

    def __init__(self, description: str, unit: str) -> None:
        self.description, self.unit = description, unit
        self.began = time.monotonic()
        self.done = 0
        self.total: int | None = None
        self.first: tuple[int, float] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> "_Lines":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.first is not None:  # a short loop may end before its thread has run
            self._write_if_due()

    def update(self, done: int, total: int | None) -> None:
        """See `Progress`."""
        self.done, self.total = done, total
        # A resumed run starts with the steps of an earlier one, and the first step warms up.
        self.first = self.first or (done, time.monotonic())

    def _write(self) -> None:
        while not self._ended.wait(max(0.0, _Lines.written + LINE_EVERY - time.monotonic())):
            self._write_if_due()

    def _write_if_due(self) -> None:
        now = time.monotonic()
        if now >= _Lines.written + LINE_EVERY:
            _Lines.written = now
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        now = time.monotonic()
        if self.first is None:
            return f"{self.description}: {now - self.began:.0f} s"
        of = "" if self.total is None else f" of {self.total:,}"
        share = "" if self.total is None else f" ({self.done / max(self.total, 1):.0%})"
        done, since = self.first
        rate = f", {(self.done - done) / (now - since):,.1f}/s" if self.done > done and now > since else ""
        return f"{self.description}: {self.done:,}{of} {self.unit}{share}{rate}"
