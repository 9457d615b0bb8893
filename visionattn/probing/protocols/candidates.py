"""Candidates, heads at learning rates, and the recipe of their training."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from visionattn.probing.protocols.results import SelectedOn, check_selected_on
from visionattn.probing.protocols.split import HELD_OUT

OptimizerName = Literal["adamw", "lars"]

ADAMW_LRS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PAPER_LRS = (0.1, 0.2, 0.5, 0.7, 1.0, 1.2, 1.5)
"""Rates for a batch of 256; they grow with the batch."""


@dataclass(frozen=True)
class Candidate:
    """A head at a learning rate.

    Attributes:
        head: Name for `create_head`.
        lr: Peak learning rate.
        options: Options of `create_head`; candidates with other options are other heads, each with a result.
        optimizer: AdamW, or LARS with momentum 0.9, trust coefficient 0.001 and no scaling of parameters of one axis.
        weight_decay: Weight decay of parameters with two axes or more.
    """

    head: str
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"the learning rate of head {self.head} must be above 0; got {self.lr}")
        if self.optimizer not in ("adamw", "lars"):
            raise ValueError(f"optimizer must be 'adamw' or 'lars'; got {self.optimizer!r}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay of head {self.head} must be at least 0; got {self.weight_decay}")

    @property
    def key(self) -> str:
        """Head and options; one candidate of each key is chosen."""
        return json.dumps([self.head, dict(self.options)], sort_keys=True)


@dataclass(frozen=True)
class Recipe:
    """Settings that all candidates of a training share.

    Attributes:
        epochs: Passes over the features.
        batch_size: Images per step.
        warmup_epochs: Epochs of a linear warm-up, at most a quarter of all; then rates fall as a cosine.
        patience: Epochs without a better accuracy after which a candidate stops; None for never.
        race: Whether the worse half of a head's candidates (the larger half of an odd number) stops after 1/3 and again
            after 2/3 of the epochs (successive halving, https://arxiv.org/abs/1502.07943).
        selected_on: Where rate and epoch are chosen; "fixed" has one candidate of each head, which ends with its last
            epoch.
        held_out: Share of train that is held out.
        seed: Seed of initial weights, of the order of images, and of the held-out part.
    """

    epochs: int = 90
    batch_size: int = 256
    warmup_epochs: float = 10
    patience: int | None = 20
    race: bool = False
    selected_on: SelectedOn = "held_out"
    held_out: float = HELD_OUT
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("warmup_epochs", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, or None for never; got {self.patience}")
        check_selected_on(self.selected_on)

    def ends_heat(self, epoch: int) -> bool:
        """Check whether the worse candidates stop after this number of epochs."""
        return self.race and epoch in (self.epochs // 3, 2 * self.epochs // 3)


def sweep(
    heads: Iterable[str | tuple[str, Mapping[str, Any]]],
    lrs: Sequence[float] = ADAMW_LRS,
    optimizer: OptimizerName = "adamw",
    weight_decay: float = 0.0,
) -> list[Candidate]:
    """Return every head, given by its name or by name and options, at every learning rate."""
    named = [(head, {}) if isinstance(head, str) else head for head in heads]
    return [Candidate(name, lr, options, optimizer, weight_decay) for name, options in named for lr in lrs]


def paper_protocol(
    heads: Iterable[str | tuple[str, Mapping[str, Any]]], batch_size: int = 4096, seed: int = 0
) -> tuple[list[Candidate], Recipe]:
    """Return the protocol of arXiv 2506.10178: LARS, 90 epochs with 10 of warm-up, rate and epoch chosen on val.

    Heads are names, or names and options. Rates are `PAPER_LRS` times a 256th of the batch size.
    """
    candidates = sweep(heads, [lr * batch_size / 256 for lr in PAPER_LRS], "lars")
    return candidates, Recipe(batch_size=batch_size, patience=None, selected_on="val", seed=seed)
