"""Progress lines of long loops, if the output is not a terminal."""

import io
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from visionattn.cli import progress as module
from visionattn.cli.progress import LightningProgress, show_progress
from visionattn.progress import adding


class Heard(io.StringIO):
    """Lines written to stderr, and a way to wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def write(self, text: str) -> int:
        with self.changed:
            self.changed.notify_all()
            return super().write(text)

    def until(self, pattern: str) -> None:
        with self.changed:
            found = self.changed.wait_for(lambda: re.search(pattern, self.getvalue(), re.MULTILINE), timeout=10)
        assert found, f"no {pattern} in {self.getvalue()[-200:]!r}"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    heard = Heard()
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=heard))
    monkeypatch.setattr(module, "LINE_EVERY", 0.01)
    before = threading.active_count()
    yield heard
    assert threading.active_count() == before


def test_line_has_done_total_and_rate(heard: Heard) -> None:
    with show_progress("evaluating", "images") as progress:
        heard.until(r"^evaluating: 0 s$")
        progress(100, 2000)
        heard.until(r"^evaluating: 100 of 2,000 images \(5%\)$")
        progress(300, 2000)
        heard.until(r"^evaluating: 300 of 2,000 images \(15%\), [\d,.]+/s$")
    before = heard.getvalue()
    with show_progress("reading", "images") as progress:
        adding(progress, 4)(3)
        heard.until(r"^reading: 3 of 4 images")
    assert "evaluating" not in heard.getvalue()[len(before) :]


def test_many_short_loops_share_one_minute(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_EVERY", 60.0)
    monkeypatch.setattr(module._Lines, "written", time.monotonic() - 59.9)
    while time.monotonic() - module._Lines.written > 1:
        with show_progress("short"):
            pass
        assert time.monotonic() - module._Lines.written < 61
    with show_progress("short"):
        pass
    assert heard.getvalue() == "short: 0 s\n"


def test_stream_of_unknown_length_is_counted(heard: Heard) -> None:
    with show_progress("streaming", "batches") as progress:
        for number in (1, 2):
            progress(number, None)
        heard.until(r"^streaming: 2 batches(, .*)?$")


@pytest.mark.parametrize(
    ("function", "stage"),
    [(TrainerFn.PREDICTING, "predict"), (TrainerFn.VALIDATING, "validation"), (TrainerFn.TESTING, "test")],
)
def test_lightning_loops_report_their_progress(heard: Heard, function: TrainerFn, stage: str) -> None:
    callback = LightningProgress()
    counts = {f"num_{name}_batches": [8] for name in ("predict", "val", "test")}
    trainer: Any = SimpleNamespace(is_global_zero=True, state=SimpleNamespace(fn=function), **counts)
    getattr(callback, f"on_{stage}_start")(trainer, None)
    getattr(callback, f"on_{stage}_batch_end")(trainer, None, None, None, 1)
    heard.until(rf"^{function.value}: 2 of 8 batches \(25%\)")
    getattr(callback, f"on_{stage}_end")(trainer, None)


def test_no_command_has_a_progress_bar_of_its_own() -> None:
    folder = Path(module.__file__).parent
    users = [path.name for path in folder.glob("*.py") if re.search(r"rich\.progress|tqdm", path.read_text("utf-8"))]
    assert users == ["progress.py"]
