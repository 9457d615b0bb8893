"""Training of all heads at all learning rates at once, with one pass over the features per epoch."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.probing.features.sources import FeatureSource
from visionattn.probing.heads import ProbingHead, create_head
from visionattn.probing.protocols.candidates import Candidate, Recipe
from visionattn.probing.protocols.results import HeadResult, Progress, check_sources, count_hits
from visionattn.probing.protocols.split import FeatureSubset, hold_out, random_order
from visionattn.probing.protocols.stack import HeadStack
from visionattn.probing.protocols.training import CandidateTraining
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


class JointTraining(CandidateTraining[ProbingHead]):
    """A training of many candidates with the arguments of `train_heads`."""

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
        self.val, self.num_classes, self.seed = val, num_classes, recipe.seed
        self.device, self.dtype = torch.device(device), dtype
        self.fitted: FeatureSource = train
        self.judged: FeatureSource | None = val if recipe.selected_on == "val" else None
        if recipe.selected_on == "held_out":
            rest, held = hold_out(train.targets, recipe.held_out, recipe.seed)
            self.fitted, self.judged = FeatureSubset(train, rest), FeatureSubset(train, held)
        super().__init__(candidates, recipe, len(self.fitted), judges=self.judged is not None)
        self._active: list[Trial[ProbingHead]] = []

    def results(self) -> list[HeadResult]:
        """Choose a trial for each head and evaluate it on val."""
        chosen = self.choose()
        hits = self._count_hits(self._stack(chosen), self.val)
        rates = (hits.double() / len(self.val)).tolist()
        return [self._result(trial, *rate) for trial, rate in zip(chosen, rates, strict=True)]

    def _result(self, trial: Trial[ProbingHead], top1: float, top5: float) -> HeadResult:
        candidate, on = trial.candidate, self.recipe.selected_on
        head = self.create(candidate)
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

    def create(self, candidate: Candidate) -> ProbingHead:
        """See `CandidateTraining`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = create_head(candidate.head, self.fitted.dim, self.num_classes, **candidate.options)
        return head.to(self.device, self.dtype)

    def train_epoch(self, trials: Sequence[Trial[ProbingHead]], progress: Progress | None) -> Tensor:
        """See `CandidateTraining`."""
        if list(trials) != self._active:
            self._active, self._shared = list(trials), self._stack(trials)
        order = random_order(len(self.fitted), self.seed, self.epoch)[: self.used]
        sums = torch.zeros(len(trials), dtype=torch.float64, device=self.device)
        self._shared.train()
        done = self.epoch * self.steps
        for step, (tokens, targets) in enumerate(self._batches(self.fitted, order, self.epoch + 1), done):
            for numbers, logits in self._shared.logits(tokens):
                losses = F.cross_entropy(logits.flatten(0, 1), targets.repeat(len(logits)), reduction="none")
                means = losses.view(len(logits), -1).mean(1)
                means.sum().backward()
                sums[numbers] += means.detach() * len(targets)
            self.optimizers.step(step)
            if progress is not None:
                progress(step + 1, self.recipe.epochs * self.steps)
        return sums / self.used

    def judge(self, trials: Sequence[Trial[ProbingHead]]) -> list[float]:
        """Return top-1 of heads that were just trained."""
        assert self.judged is not None
        rates: list[float] = (self._count_hits(self._shared, self.judged)[:, 0].double() / len(self.judged)).tolist()
        return rates

    def content(self) -> dict[str, Any]:
        """See `CandidateTraining`."""
        return {
            "width": self.fitted.dim,
            "images": len(self.fitted),
            "targets": [
                None if part is None else zlib.crc32(part.targets.numpy().tobytes())
                for part in (self.fitted, self.judged)
            ],
            "num_classes": self.num_classes,
            "dtype": str(self.dtype),
        }

    def _stack(self, trials: Sequence[Trial[ProbingHead]]) -> HeadStack:
        return HeadStack([trial.head for trial in trials], self.fitted.num_prefix_tokens, self.fitted.num_reg_tokens)

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
