"""Options of a probing session: which images, which features, and how heads are trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from visionattn.checks import check_range
from visionattn.data.transforms import MAX_SIZE
from visionattn.errors import UserError
from visionattn.evaluation.as_trained import PreparedImages
from visionattn.probing.frozen import Layer
from visionattn.probing.protocols import Candidate, Recipe, paper_protocol, sweep
from visionattn.probing.protocols.candidates import ADAMW_LRS, PAPER_LRS, OptimizerName
from visionattn.probing.protocols.results import SelectedOn, middle
from visionattn.probing.protocols.split import can_hold_out


@dataclass(frozen=True)
class ProbingData(PreparedImages):
    """Images to probe; by default the preprocessing is the backbone's own.

    More arguments: `visionattn.evaluation.PreparedImages` and `visionattn.evaluation.DataOptions`.

    Args:
        train_split: name of the split to train heads on, if it is not found by itself.
        val_split: name of the split to evaluate heads on, if it is not found by itself.
        val_labels: table of the images to evaluate heads on, if they are not in the one of labels.
        limit_per_class: number of training images per class, the same ones for every seed.
    """

    train_split: str | None = None
    val_split: str | None = None
    val_labels: str | None = None
    limit_per_class: int | None = None

    def __post_init__(self) -> None:
        check_range("data.img_size", self.img_size, 1, MAX_SIZE, error=UserError)


@dataclass(frozen=True)
class LayerOptions:
    """Layers to probe, and the cache of their features.

    Args:
        layers: last, or numbers of blocks (in hierarchical models, stages), counted from 0 or, if negative, from the
            last; features of several layers are put side by side.
        each_layer: probe each of the layers separately.
        cache: folder for features and for the state of trainings; a second run resumes from it.
        token_budget_gb: tokens of a split are cached if they take at most this many 10⁹ bytes. Otherwise only pooled
            vectors are cached, and the backbone runs in every epoch.
        dtype: type of cached features.
    """

    layers: list[Layer] = field(default_factory=lambda: ["last"])
    each_layer: bool = False
    cache: Path = Path("runs/probing")
    token_budget_gb: float = 16.0
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        check_range("features.token_budget_gb", self.token_budget_gb, 0, error=UserError)

    @property
    def folder(self) -> Path:
        """The cache's folder, with ``~`` expanded."""
        return Path(self.cache).expanduser()


@dataclass(frozen=True)
class FeatureOptions(LayerOptions):
    """Features to probe, and their cache.

    More arguments: `LayerOptions`.

    Args:
        views: number of views of each training image that heads see in turn: the image as in evaluation, and views - 1
            random crops and flips. If tokens are not cached, more than 1 means new crops in every epoch.
    """

    views: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("features.views", self.views, 1, error=UserError)


@dataclass(frozen=True)
class HeadTraining:
    """Training of heads, and the choice of learning rates, epochs and other hyper-parameters.

    Args:
        protocol: held_out chooses on a tenth of train, and reads val once, at the end; paper is the protocol of arXiv
            2506.10178, LARS with batches of 4,096 and the best epoch on val itself, which is optimistic.
        optimizer: adamw (default) or lars.
        lrs: peak learning rates to choose from; those of lars are for a batch of 256.
        weight_decay: weight decay of matrices, by default none.
        epochs: passes over the features, by default 30, or 90 in the paper protocol.
        batch_size: images per step, by default 256, or 4096 in the paper protocol.
        patience: epochs without a better accuracy after which a head stops, by default 10; 0 for never.
        race: drop the worse half of a head's learning rates after 1/3 and again after 2/3 of the epochs, by default
            true; false takes about twice as long.
        seed: seed of initial weights, of the order of images, of the held-out part, and of few-shot draws.
        shots: numbers of images per class for few-shot learning. With 1 image per class none can be held out: rates
            and other hyper-parameters are then the middle ones of their grids, and the last epoch counts.
        repeats: number of draws of few-shot images.
    """

    protocol: Literal["held_out", "paper"] = "held_out"
    optimizer: OptimizerName | None = None
    lrs: list[float] | None = None
    weight_decay: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    patience: int | None = None
    race: bool | None = None
    seed: int = 0
    shots: list[int] | None = None
    repeats: int = 5

    def __post_init__(self) -> None:
        own = ("optimizer", "lrs", "weight_decay", "patience", "race")
        given = [name for name in own if getattr(self, name) is not None]
        if self.protocol == "paper" and given:
            raise UserError(f"--training.protocol paper has its own {given[0]}: leave out --training.{given[0]}")
        check_range("training.repeats", self.repeats, 1, error=UserError)
        for count in self.shots or ():
            check_range("training.shots", count, 1, error=UserError)

    def selected_on(self, targets: Tensor) -> SelectedOn:
        """Return where hyper-parameters are chosen for images of these classes."""
        if self.protocol == "paper":
            return "val"
        return "held_out" if can_hold_out(targets) else "fixed"

    def expand(
        self, heads: Sequence[tuple[str, Mapping[str, Any]]], seed: int, selected_on: SelectedOn = "held_out"
    ) -> tuple[list[Candidate], Recipe]:
        """Return every head, by name and options, at every learning rate, and the recipe that they share.

        In the paper's protocol choices are always made on val, whatever `selected_on`.

        Raises:
            ValueError: A number out of its bounds.
        """
        if self.protocol == "paper":
            batch_size = 4096 if self.batch_size is None else self.batch_size
            candidates, recipe = paper_protocol(heads, batch_size, seed)
        else:
            optimizer, batch_size = self.optimizer or "adamw", 256 if self.batch_size is None else self.batch_size
            rates = self.lrs or (ADAMW_LRS if optimizer == "adamw" else PAPER_LRS)
            rates = [middle(rates)] if selected_on == "fixed" else rates
            scale = batch_size / 256 if optimizer == "lars" else 1.0
            candidates = sweep(heads, [scale * lr for lr in rates], optimizer, self.weight_decay or 0.0)
            patience = 10 if self.patience is None else self.patience or None
            race = self.race is not False
            recipe = Recipe(30, batch_size, patience=patience, race=race, selected_on=selected_on, seed=seed)
        return candidates, recipe if self.epochs is None else replace(recipe, epochs=self.epochs)
