"""Training as a function: the command ``fit`` for programs, such as searches for hyper-parameters."""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from visionattn.cli.training import TrainingCLI, training_settings
from visionattn.errors import UsageError
from visionattn.evaluation import LoadedModel, load_model
from visionattn.training.checkpoints.callbacks import BEST, LAST
from visionattn.training.random_state import same_random_state

GROUPS = ("model", "data", "trainer")
"""Sections of a config; values of other names are options themselves."""
NO_RESULT = "trainer.fast_dev_run leaves no result: pass a small trainer.max_steps instead"


@dataclass(frozen=True)
class FitResult:
    """Outcome of a training.

    Attributes:
        score: Best value of ``metric``; None without validation or checkpoints.
        metric: Metric that selects the best checkpoint, such as ``val_top1``.
        best_checkpoint: Checkpoint with that value; None without one.
        last_checkpoint: Checkpoint of the end, which a longer training resumes; None without one.
        folder: Folder of the run.
        metrics: Last value of each metric of training and validation.
        epochs: Epochs done.
        steps: Updates of the weights done.
        seconds: Duration, over all resumes.
    """

    score: float | None
    metric: str
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    folder: Path
    metrics: dict[str, float]
    epochs: int
    steps: int
    seconds: float

    def load(self) -> LoadedModel:
        """Load the model of the best checkpoint, without one that of the last.

        Raises:
            UsageError: the training saved no checkpoint.
        """
        checkpoint = self.best_checkpoint or self.last_checkpoint
        if checkpoint is None:
            raise UsageError(f"{self.folder} has no checkpoint to load")
        return load_model(checkpoint)


def fit(
    config: Mapping[str, Any] | str | Path,
    *overrides: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> FitResult:
    """Train as the command ``visionattn fit`` does, and return the score.

    ``fit("quickstart", {"model.lr": 0.01})`` equals ``visionattn fit --config quickstart --model.lr 0.01``. Equal
    options give equal results, however many trainings ran before in this process, whose environment, random states and
    settings of PyTorch stay as they were.

    Args:
        config: Options by name, or the config file that holds them: a file of your own, or a shipped one.
        *overrides: Further options by name; later ones win. Names are nested (``{"model": {"lr": 0.1}}``) or dotted
            (``{"model.lr": 0.1}``).
        callbacks: Further callbacks of Lightning, e.g. one that reports to a search and raises its exception to stop.
        quiet: Print nothing.

    Raises:
        UsageError: An unknown option, a value that does not fit, or no such config file.
        UserError: Data or weights are missing, or do not fit.
        KeyboardInterrupt: Interrupted; a checkpoint has been saved.
    """
    options = {} if isinstance(config, Mapping) else {"config": str(config)}
    for mapping in (config, *overrides) if isinstance(config, Mapping) else overrides:
        options |= flat_options(mapping)
    if options.get("trainer.fast_dev_run", "false") not in ("false", "0"):
        raise UsageError(NO_RESULT)
    words = ["fit", *(f"--{name}={value}" for name, value in options.items())]
    return train(TrainingCLI, words, callbacks, quiet)


def train(command: type[TrainingCLI], words: list[str], callbacks: Sequence[Callback], quiet: bool) -> FitResult:
    """Run a command line of a training, and return the outcome; see `fit` for arguments and errors."""
    with ExitStack() as stack:
        stack.enter_context(training_settings())
        stack.enter_context(_same_process())
        if quiet:
            stack.enter_context(redirect_stdout(io.StringIO()))
        try:
            return _result(command(words, "visionattn", callbacks))
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning ends the process
                raise error.__context__ from None
            raise


def flat_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Return nested or dotted options by dotted name, with their values as the command line takes them.

    Raises:
        UsageError: A value that no config file can hold.
    """
    found: dict[str, str] = {}
    for name, value in options.items():
        if name in GROUPS and isinstance(value, Mapping):
            found |= {f"{name}.{key}": _written(f"{name}.{key}", inner) for key, inner in value.items()}
        else:
            found[name] = _written(name, value)
    return found


def _written(name: str, value: Any) -> str:
    """Return the value of an option as text."""
    if isinstance(value, str | Path):
        return str(value)
    try:
        return json.dumps(value, default=_plain)
    except TypeError as error:
        raise UsageError(f"{name}: {value!r} is not a value of a config file: {error}") from error


def _plain(value: Any) -> Any:
    """Return a path as text, and a number of NumPy or PyTorch as one of Python."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"numbers, text, lists and mappings are, and {type(value).__name__} is not")


def _result(cli: TrainingCLI) -> FitResult:
    """Return the outcome of a training that has ended."""
    run, trainer = cli.run, cli.trainer
    if run is None:  # a config file says so
        raise UsageError(NO_RESULT)
    score = run.best.best_model_score
    return FitResult(
        score=None if score is None else float(score),
        metric=cli.model.monitor,
        best_checkpoint=_existing(run.folder.checkpoints / BEST),
        last_checkpoint=_existing(run.folder.checkpoints / LAST),
        folder=run.folder.path,
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=run.stopwatch.seconds,
    )


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


@contextmanager
def _same_process() -> Iterator[None]:
    """Restore what a training changes in its process; Lightning restores the signal handlers."""
    environment, benchmark = dict(os.environ), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with same_random_state():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warn)
        torch.backends.cudnn.benchmark = benchmark
