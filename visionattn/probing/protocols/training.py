"""Training of candidates together: rates that trail stop, the best epoch counts, and a killed training resumes."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic

from torch import Tensor

from visionattn.probing.protocols.candidates import Candidate, Recipe
from visionattn.probing.protocols.optimizers import Optimizers
from visionattn.probing.protocols.results import Progress
from visionattn.probing.protocols.state import load_state, save_state
from visionattn.probing.protocols.trial import Head, Trial


class CandidateTraining(ABC, Generic[Head]):
    """A training of many candidates, each a trial, on the same images; `epoch` counts those done.

    A subclass creates heads, trains them for an epoch and judges them. What these methods read is set before
    `__init__` of this class is called.
    """

    def __init__(self, candidates: Sequence[Candidate], recipe: Recipe, num_images: int, *, judges: bool) -> None:
        """Create the heads.

        Args:
            candidates: Heads at learning rates.
            recipe: Settings that all candidates share.
            num_images: Number of images to train on.
            judges: Whether `judge` says how good heads are, so that a rate and an epoch can be chosen.

        Raises:
            ValueError: There is no candidate, several rates of one head and no choice, or only one image.
        """
        if not candidates:
            raise ValueError("there is no candidate to train; name at least one head and one learning rate")
        self.recipe, self.judges = recipe, judges
        # Batch norm cannot train on one image: leave it out if it would be the last batch.
        self.used = num_images - (num_images % recipe.batch_size == 1)
        if not self.used:
            raise ValueError("there is only 1 image to train on, and batch norm needs 2; take more")
        self.steps = math.ceil(self.used / recipe.batch_size)
        self.epoch = 0
        # Heads of one kind start with the same weights, whatever else is trained.
        kinds = {candidate.key: candidate for candidate in candidates}
        if not judges and len(kinds) < len(candidates):
            raise ValueError("several rates of one head and selected_on 'fixed': give each head one rate")
        made = {key: self.create(candidate) for key, candidate in kinds.items()}
        self.trials = [Trial(candidate, deepcopy(made[candidate.key])) for candidate in candidates]
        warmup = min(recipe.warmup_epochs, recipe.epochs / 4)
        self.optimizers = Optimizers(
            [(trial.candidate, trial.head) for trial in self.trials],
            recipe.epochs * self.steps,
            int(warmup * self.steps),
        )

    @abstractmethod
    def create(self, candidate: Candidate) -> Head:
        """Create a head with the initial weights of the recipe's seed."""

    @abstractmethod
    def train_epoch(self, trials: Sequence[Trial[Head]], progress: Progress | None) -> Tensor:
        """Train heads for an epoch, and return their mean losses `[L]`."""

    @abstractmethod
    def judge(self, trials: Sequence[Trial[Head]]) -> list[float]:
        """Return how good heads are where choices are made; the higher the better."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return what else a training depends on besides features, candidates and recipe, as plain values."""

    def fit(self, state_file: str | Path | None = None, identity: str = "", progress: Progress | None = None) -> None:
        """Train until every trial has stopped or all epochs are done."""
        if state_file is not None:
            self._resume(state_file, identity)
        while self.epoch < self.recipe.epochs:
            active = [trial for trial in self.trials if not trial.stopped]
            if not active:
                break
            start = time.perf_counter()
            losses = self.train_epoch(active, progress).tolist()
            found: Sequence[float | None] = self.judge(active) if self.judges else [None] * len(active)
            seconds = time.perf_counter() - start
            for trial, loss, accuracy in zip(active, losses, found, strict=True):
                trial.note(loss, accuracy, seconds, self.recipe.patience)
            self.epoch += 1
            if self.recipe.ends_heat(self.epoch):
                self._stop_trailing()
            if state_file is not None:
                save_state(state_file, self._state(identity))
        if progress is not None:
            progress(self.recipe.epochs * self.steps, self.recipe.epochs * self.steps)

    def choose(self) -> list[Trial[Head]]:
        """Choose a trial for each head, and give the head its best weights."""
        chosen: dict[str, Trial[Head]] = {}
        for trial in self.trials:
            rival = chosen.get(trial.candidate.key)
            if rival is None or trial.best_accuracy > rival.best_accuracy:
                chosen[trial.candidate.key] = trial
        for trial in chosen.values():
            trial.head.load_state_dict(trial.best)
        return list(chosen.values())

    def _stop_trailing(self) -> None:
        """Stop the worse half of each head's candidates; at least one stays."""
        heats: dict[str, list[Trial[Head]]] = {}
        for trial in self.trials:
            if not trial.stopped:
                heats.setdefault(trial.candidate.key, []).append(trial)
        for heat in heats.values():
            heat.sort(key=lambda trial: -trial.best_accuracy)
            for trial in heat[max(1, len(heat) // 2) :]:
                trial.stopped = True

    def _identity(self, identity: str) -> dict[str, Any]:
        return {
            "features": identity,
            **self.content(),
            "candidates": [asdict(trial.candidate) for trial in self.trials],
            "recipe": asdict(self.recipe),
        }

    def _state(self, identity: str) -> dict[str, Any]:
        return {
            "identity": self._identity(identity),
            "epoch": self.epoch,
            "runs": [trial.state() for trial in self.trials],
            "optimizers": self.optimizers.state(),
        }

    def _resume(self, state_file: str | Path, identity: str) -> None:
        state = load_state(state_file)
        if state is None:
            return
        own = self._identity(identity)
        stored = state.get("identity", {})
        if differing := [name for name in own if stored.get(name) != own[name]]:
            raise ValueError(
                f"{state_file} is the state of a training with other {', '.join(differing)}; name another file, or "
                "delete this one to start over"
            )
        self.epoch = state["epoch"]
        self.optimizers.load(state["optimizers"])
        for trial, stored in zip(self.trials, state["runs"], strict=True):
            trial.load(stored)
