"""Training of the segmentation head, at all learning rates at once."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.metrics.semantic import SemanticScores
from visionattn.probing.protocols.candidates import Candidate, Recipe
from visionattn.probing.protocols.results import Progress
from visionattn.probing.protocols.split import hold_out, random_order
from visionattn.probing.protocols.training import CandidateTraining
from visionattn.probing.protocols.trial import Trial
from visionattn.probing.segmentation.head import LinearSegmenter
from visionattn.probing.segmentation.pixels import Corners, LabelledFeatures, classify_pixels, draw_pixels

Batches = Iterator[tuple[Tensor, Tensor]]


class PixelTraining(CandidateTraining[LinearSegmenter]):
    """A training of the segmentation head by cross entropy at drawn pixels.

    A part of train is held out. The mean IoU at drawn pixels of these images, always the same, chooses learning rates
    and epochs.
    """

    def __init__(
        self,
        train: LabelledFeatures,
        candidates: Sequence[Candidate],
        num_classes: int,
        recipe: Recipe,
        pixels: int,
        device: torch.device,
    ) -> None:
        """Create the heads.

        Args:
            train: Features to train on.
            candidates: Heads at learning rates.
            num_classes: Number of classes.
            recipe: Settings that all candidates share; `selected_on` is `held_out`.
            pixels: Number of pixels drawn from each image in a step.
            device: Device of the training.

        Raises:
            ValueError: There is nothing to train, or there are fewer than 3 images.
        """
        self.train, self.num_classes, self.pixels, self.device = train, num_classes, pixels, device
        if len(train) < 3:
            raise ValueError(f"{len(train)} images of train are too few: 2 are trained on and 1 is held out, take more")
        self.fitted, self.held = hold_out(torch.zeros(len(train), dtype=torch.long), recipe.held_out, recipe.seed)
        self.seed = recipe.seed
        super().__init__(candidates, recipe, len(self.fitted), judges=True)

    def create(self, candidate: Candidate) -> LinearSegmenter:
        """See `CandidateTraining`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = LinearSegmenter(self.train.source.dim, self.num_classes, **candidate.options)
        return head.to(self.device)

    def train_epoch(self, trials: Sequence[Trial[LinearSegmenter]], progress: Progress | None) -> Tensor:
        """See `CandidateTraining`."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self.fitted[random_order(len(self.fitted), self.seed, self.epoch)[: self.used]]
        sums = torch.zeros(len(trials), dtype=torch.float64, device=self.device)
        for trial in trials:
            trial.head.train()
        done = self.epoch * self.steps
        for step, (patches, labels) in enumerate(self.batches(order), done):
            corners, targets = self._draw(rng, labels)
            counted = (targets >= 0).sum().clamp(min=1)
            for number, trial in enumerate(trials):
                logits = corners.interpolate(trial.head(patches))
                loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / counted
                loss.backward()
                sums[number] += loss.detach() * len(labels)
            self.optimizers.step(step)
            if progress is not None:
                progress(step + 1, self.recipe.epochs * self.steps)
        return sums / self.used

    @torch.no_grad()
    def judge(self, trials: Sequence[Trial[LinearSegmenter]]) -> list[float]:
        """Return the mean IoU of heads at drawn pixels of the held-out images."""
        rng = np.random.default_rng(self.seed)
        scores = [SemanticScores(self.num_classes) for _ in trials]
        for trial in trials:
            trial.head.eval()
        for patches, labels in self.batches(self.held):
            corners, targets = self._draw(rng, labels)
            for trial, score in zip(trials, scores, strict=True):
                score.update_pixels(targets, corners.interpolate(trial.head(patches)).argmax(1))
        return [score.compute() or 0.0 for score in scores]

    def content(self) -> dict[str, Any]:
        """See `CandidateTraining`."""
        return {"images": len(self.train), "num_classes": self.num_classes, "pixels": self.pixels}

    def batches(self, order: Tensor) -> Batches:
        """Yield patches `[b, N, D]` and label maps `[b, H, W]` of images, on the device."""
        return read(self.train, order, self.recipe.batch_size, self.device)

    def _draw(self, rng: np.random.Generator, labels: Tensor) -> tuple[Corners, Tensor]:
        """Draw pixels of images, and return the patches around them, and their classes `[b * P]`."""
        size = labels.shape[1:]
        pixels = draw_pixels(rng, self.pixels, len(labels), size).to(labels.device)
        return Corners.of(pixels, self.train.layout.grid, size), labels.flatten(1).gather(1, pixels).flatten()


def read(features: LabelledFeatures, order: Tensor, batch_size: int, device: torch.device) -> Batches:
    """Yield patches `[b, N, D]` and label maps `[b, H, W]` of images in an order, on a device."""
    for tokens, places in features.source.batches(order, batch_size):
        patches = tokens[:, features.layout.num_prefix_tokens :]
        yield patches.to(device), features.labels(order[places].numpy()).to(device)


@torch.no_grad()
def evaluate(
    head: LinearSegmenter,
    val: LabelledFeatures,
    num_classes: int,
    batch_size: int,
    device: torch.device,
    progress: Progress | None = None,
) -> SemanticScores:
    """Compare the class of each pixel of val, by a head in evaluation mode, with its label."""
    scores = SemanticScores(num_classes)
    done = 0
    for patches, labels in read(val, torch.arange(len(val)), batch_size, device):
        scores.update_pixels(labels, classify_pixels(head(patches), val.layout.grid, labels.shape[1:]))
        done += len(labels)
        if progress is not None:
            progress(done, len(val))
    return scores
