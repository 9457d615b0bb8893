"""Training of all heads at all learning rates at once, with one pass over the features per epoch."""

import math
import time
import zlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.heads import ProbingHead, create_head
from visionattn.probing.protocols.candidates import Candidate, Recipe
from visionattn.probing.protocols.optimizers import Optimizers
from visionattn.probing.protocols.results import HeadResult, Progress, check_sources, count_hits
from visionattn.probing.protocols.split import FeatureSubset, hold_out, random_order
from visionattn.probing.protocols.stack import HeadStack
from visionattn.probing.protocols.state import load_state, save_state
from visionattn.probing.protocols.trial import Trial


def train_heads(
    train: FeatureSource,
    val: FeatureSource,
    candidates: Sequence[Candidate],
    num_classes: int,
    recipe: Recipe | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    state_file: str | Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> list[HeadResult]:
    """Train candidates together, choose one for each head, and evaluate these on val.

    Unless the recipe chooses on val, val is read once, at the end. Every random choice is a function of the recipe's
    seed and of the epoch: a training that is killed and resumed from its state file ends with the same numbers, bit by
    bit, on the same machine with the same number of threads.

    Args:
        train: Features to train on.
        val: Features to evaluate on.
        candidates: Heads at learning rates.
        num_classes: Classes.
        recipe: Settings that all candidates share, by default `Recipe()`.
        device: Device of the training.
        dtype: Type of heads and tokens.
        state_file: File for the state after every epoch; an interrupted training resumes from it.
        identity: Identity of the features, such as the key of their cache; the state of others is refused.
        progress: Called after every step.

    Returns:
        A result with its head for each name with its options, in the order of the candidates.

    Raises:
        ValueError: Something does not fit together, or the state file is damaged or of another training.
        OSError: The state cannot be written.
    """
    training = JointTraining(train, val, candidates, num_classes, recipe or Recipe(), device, dtype)
    training.fit(state_file, identity, progress)
    return training.results()


class JointTraining:
    """A training of many candidates, each a trial, with the arguments of `train_heads`; `epoch` counts those done."""

    def __init__(
        self,
        train: FeatureSource,
        val: FeatureSource,
        candidates: Sequence[Candidate],
        num_classes: int,
        recipe: Recipe,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_sources(train, val, num_classes)
        if not candidates:
            raise ValueError("there is no candidate to train; name at least one head and one learning rate")
        self.val, self.num_classes, self.recipe = val, num_classes, recipe
        self.device, self.dtype = torch.device(device), dtype
        self.fitted: FeatureSource = train
        self.judged: FeatureSource | None = val if recipe.selected_on == "val" else None
        if recipe.selected_on == "held_out":
            rest, held = hold_out(train.targets, recipe.held_out, recipe.seed)
            self.fitted, self.judged = FeatureSubset(train, rest), FeatureSubset(train, held)
        # Batch norm cannot train on one image: leave it out if it would be the last batch.
        self.used = len(self.fitted) - (len(self.fitted) % recipe.batch_size == 1)
        if not self.used:
            raise ValueError("there is only 1 image to train on, and batch norm needs 2; take more")
        self.steps = math.ceil(self.used / recipe.batch_size)
        self.epoch = 0
        # Heads of one kind start with the same weights, whatever else is trained.
        kinds = {candidate.key: candidate for candidate in candidates}
        if self.judged is None and len(kinds) < len(candidates):
            raise ValueError("several rates of one head and selected_on 'fixed': give each head one rate")
        made = {key: self._create(candidate) for key, candidate in kinds.items()}
        self.trials = [Trial(candidate, deepcopy(made[candidate.key])) for candidate in candidates]
        warmup = min(recipe.warmup_epochs, recipe.epochs / 4)
        self.optimizers = Optimizers(
            [(trial.candidate, trial.head) for trial in self.trials],
            recipe.epochs * self.steps,
            int(warmup * self.steps),
        )

    def fit(self, state_file: str | Path | None = None, identity: str = "", progress: Progress | None = None) -> None:
        """Train until every trial has stopped or all epochs are done."""
        if state_file is not None:
            self._resume(state_file, identity)
        active: list[Trial] = []
        while self.epoch < self.recipe.epochs:
            remaining = [trial for trial in self.trials if not trial.stopped]
            if not remaining:
                break
            if len(remaining) != len(active):
                active, stack = remaining, self._stack(remaining)
            self._train_epoch(active, stack, progress)
            if self.recipe.ends_heat(self.epoch):
                self._stop_trailing()
            if state_file is not None:
                save_state(state_file, self._state(identity))
        if progress is not None:
            progress(self.recipe.epochs * self.steps, self.recipe.epochs * self.steps)

    def _stop_trailing(self) -> None:
        """Stop the worse half of each head's candidates; at least one stays."""
        heats: dict[str, list[Trial]] = {}
        for trial in self.trials:
            if not trial.stopped:
                heats.setdefault(trial.candidate.key, []).append(trial)
        for heat in heats.values():
            heat.sort(key=lambda trial: -trial.best_accuracy)
            for trial in heat[max(1, len(heat) // 2) :]:
                trial.stopped = True

    def results(self) -> list[HeadResult]:
        """Choose a trial for each head and evaluate it on val."""
        chosen: dict[str, Trial] = {}
        for trial in self.trials:
            rival = chosen.get(trial.candidate.key)
            if rival is None or trial.best_accuracy > rival.best_accuracy:
                chosen[trial.candidate.key] = trial
        for trial in chosen.values():
            trial.head.load_state_dict(trial.best)
        hits = self._count_hits(self._stack(list(chosen.values())), self.val)
        rates = (hits.double() / len(self.val)).tolist()
        return [self._result(trial, *rate) for trial, rate in zip(chosen.values(), rates, strict=True)]

    def _result(self, trial: Trial, top1: float, top5: float) -> HeadResult:
        candidate, on = trial.candidate, self.recipe.selected_on
        head = self._create(candidate)
        head.load_state_dict(trial.best)
        return HeadResult(
            name=candidate.head,
            options=dict(candidate.options),
            num_parameters=trial.num_parameters,
            top1=top1,
            top5=top5,
            selected_on=on,
            held_out_accuracy=trial.best_accuracy if on == "held_out" else None,
            seconds=trial.seconds,
            lr=candidate.lr,
            epoch=trial.best_epoch,
            optimizer=candidate.optimizer,
            weight_decay=candidate.weight_decay,
            head=head.cpu().eval(),
        )

    def _create(self, candidate: Candidate) -> ProbingHead:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            head = create_head(candidate.head, self.fitted.dim, self.num_classes, **candidate.options)
        return head.to(self.device, self.dtype)

    def _stack(self, trials: Sequence[Trial]) -> HeadStack:
        return HeadStack([trial.head for trial in trials], self.fitted.num_prefix_tokens, self.fitted.num_reg_tokens)

    def _train_epoch(self, trials: Sequence[Trial], stack: HeadStack, progress: Progress | None) -> None:
        start = time.perf_counter()
        order = random_order(len(self.fitted), self.recipe.seed, self.epoch)[: self.used]
        sums = torch.zeros(len(trials), dtype=torch.float64, device=self.device)
        stack.train()
        done = self.epoch * self.steps
        for step, (tokens, targets) in enumerate(self._batches(self.fitted, order, self.epoch + 1), done):
            for numbers, logits in stack.logits(tokens):
                losses = F.cross_entropy(logits.flatten(0, 1), targets.repeat(len(logits)), reduction="none")
                means = losses.view(len(logits), -1).mean(1)
                means.sum().backward()
                sums[numbers] += means.detach() * len(targets)
            self.optimizers.step(step)
            if progress is not None:
                progress(step + 1, self.recipe.epochs * self.steps)
        accuracies: list[float | None] = [None] * len(trials)
        if self.judged is not None:
            accuracies = (self._count_hits(stack, self.judged)[:, 0].double() / len(self.judged)).tolist()
        seconds = time.perf_counter() - start
        for trial, loss, accuracy in zip(trials, (sums / self.used).tolist(), accuracies, strict=True):
            trial.note(loss, accuracy, seconds, self.recipe.patience)
        self.epoch += 1

    @torch.no_grad()
    def _count_hits(self, stack: HeadStack, source: FeatureSource) -> Tensor:
        """Count the right answers of each head, `[L, 2]`; see `count_hits`."""
        hits = torch.zeros(len(stack.heads), 2, dtype=torch.long, device=self.device)
        stack.train(False)
        for tokens, targets in self._batches(source, torch.arange(len(source))):
            for numbers, logits in stack.logits(tokens):
                hits[numbers] += count_hits(logits, targets)
        return hits.cpu()

    def _batches(self, source: FeatureSource, indices: Tensor, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for tokens, places in source.batches(indices, self.recipe.batch_size, epoch):
            targets = source.targets[indices[places.cpu()]]
            yield tokens.to(self.device, self.dtype), targets.to(self.device)

    def _identity(self, identity: str) -> dict[str, Any]:
        return {
            "features": identity,
            "width": self.fitted.dim,
            "images": len(self.fitted),
            "targets": [
                None if part is None else zlib.crc32(part.targets.numpy().tobytes())
                for part in (self.fitted, self.judged)
            ],
            "num_classes": self.num_classes,
            "candidates": [asdict(trial.candidate) for trial in self.trials],
            "recipe": asdict(self.recipe),
            "dtype": str(self.dtype),
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
