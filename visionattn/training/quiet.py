"""Lightning without the hints that do not apply to the trainings here."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOISE = (
    r".*does not have many workers.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*WeightAveraging callback.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*is smaller than the logging interval.*",
    r".*your dataloader is not resumable.*",
    r".*Precision .* is not supported by the model summary.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*GPU available but not used.*",
    r".*callbacks used to create the checkpoint need to be provided.*",
    r".*`IterableDataset` has `__len__` defined.*",
)
"""Warnings about what is dealt with here, or is the user's choice."""


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's information and the warnings of `NOISE`."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
