"""Training of the segmentation head, as options."""

from dataclasses import dataclass

from visionattn.checks import check_range
from visionattn.errors import UserError
from visionattn.probing.protocols.candidates import ADAMW_LRS, Candidate, Recipe, sweep
from visionattn.probing.protocols.split import HELD_OUT


@dataclass(frozen=True)
class SegmentationTraining:
    """Training of the segmentation head, with learning rate and epoch chosen on a part of train.

    Args:
        lrs: peak learning rates of AdamW to choose from.
        weight_decay: weight decay of matrices.
        epochs: passes over the features.
        batch_size: images per step.
        pixels: number of pixels drawn from each image in a step, new ones every time; a number above that of its pixels
            means all.
        batch_norm: normalise patches before the classifier, as DINOv2's linear head does.
        held_out: share of train that is held out to choose the learning rate and the epoch.
        patience: epochs without a better mean IoU after which a learning rate stops; 0 for never.
        race: drop the worse half of the learning rates after 1/3 and again after 2/3 of the epochs.
        seed: seed of initial weights, of the order of images, of drawn pixels, of the held-out part, and of random
            backbones.
    """

    lrs: list[float] | None = None
    weight_decay: float = 1e-4
    epochs: int = 60
    batch_size: int = 16
    pixels: int = 512
    batch_norm: bool = True
    held_out: float = HELD_OUT
    patience: int = 0
    race: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, bound in (("epochs", 1), ("batch_size", 2), ("pixels", 1), ("patience", 0), ("weight_decay", 0)):
            check_range(f"training.{name}", getattr(self, name), bound, error=UserError)
        check_range("training.held_out", self.held_out, 0, 0.5, above=True, error=UserError)
        for lr in self.lrs or ():
            check_range("training.lrs", lr, 0, above=True, error=UserError)

    def expand(self) -> tuple[list[Candidate], Recipe]:
        """Return the head at every learning rate, and the recipe of their training."""
        head = ("linear", {"batch_norm": self.batch_norm})
        candidates = sweep([head], self.lrs or ADAMW_LRS, weight_decay=self.weight_decay)
        patience = self.patience or None
        return candidates, Recipe(
            self.epochs,
            self.batch_size,
            patience=patience,
            race=self.race,
            held_out=self.held_out,
            seed=self.seed,
        )
