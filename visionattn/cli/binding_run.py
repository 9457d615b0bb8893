"""One backbone on one data set of scenes: probes for object binding on all of its layers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from visionattn.cli.errors import UsageError
from visionattn.cli.options import renamed
from visionattn.cli.progress import show_progress, track
from visionattn.data import UnreadableImageError
from visionattn.data.loading import OnError
from visionattn.data.scenes import SceneBatch, SceneData
from visionattn.data.scenes.opening import SceneName
from visionattn.evaluation.loop import NAMED_UNREADABLE
from visionattn.objects.binding import BindingProbes, ProbeRecipe
from visionattn.probing.backbone import Backbone, weights_hash
from visionattn.probing.features.splits import prepare
from visionattn.probing.options import ProbingData
from visionattn.tasks.checkpoint import ClassifierSpec


@dataclass(frozen=True)
class BindingData:
    """Which scenes, and how they are read; preprocessing that is not given is the backbone's own.

    Args:
        name: synthetic, which are drawn as they are needed, coco_panoptic, ade20k, or folder, which has masks with
            numbers of instances; by default folder where there is a root, else synthetic.
        root: folder of the data set.
        train_split: name of the split that probes are trained on, where it is not found by itself.
        val_split: the same for the one that they are evaluated on.
        limit: use so many scenes of each split, the first ones.
        length: synthetic scenes to train on.
        val_length: synthetic scenes to evaluate on.
        img_size: height and width in pixels.
        interpolation: bicubic, bilinear, nearest, …
        batch_size: images per step of backbone and probes.
        num_workers: loader processes.
        on_error: a scene that cannot be read: raise names it and stops, skip leaves it out and counts it.
    """

    name: SceneName | None = None
    root: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    limit: int | None = None
    length: int = 1000
    val_length: int = 200
    img_size: int | None = None
    interpolation: str | None = None
    batch_size: int = 16
    num_workers: int | None = None
    on_error: OnError = "raise"


@dataclass(frozen=True)
class ProbeTraining:
    """How probes are made and trained: by Adam, on all pairs of patches that are drawn from each image.

    Args:
        epochs: passes over the training scenes, in each of which the backbone runs anew.
        lr: learning rate; that of a probe's single bias is larger by the square root of the backbone's width.
        patches: drawn from each image, anew in every step; in evaluation, the same ones in every run.
        min_purity: leave out patches of whose pixels the segment that has most of them has a smaller share.
        rank: of the quadratic probe.
        num_queries: of the identity probe: segments of an image beyond these are not learnt.
        seed: of initial weights, the order of scenes, the patches that are drawn, and random backbones.
    """

    epochs: int = 30
    lr: float = 1e-3
    patches: int = 256
    min_purity: float = 0.0
    rank: int = 100
    num_queries: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"--training.epochs must be at least 1, got {self.epochs}")
        self.recipe()

    def recipe(self) -> ProbeRecipe:
        """The same for `BindingProbes`.

        Raises:
            UsageError: a number that is out of its bounds.
        """
        try:
            return ProbeRecipe(self.lr, self.patches, self.min_purity, self.rank, self.num_queries)
        except ValueError as error:
            raise UsageError(f"--training.{error}") from error  # whose options have the same names


class BindingSubject:
    """A backbone, frozen, on a data set.

    Attributes:
        backbone: it, on its device; its blocks come as they are, without the final norm.
        module: the scenes.
        probes: on all its layers.
    """

    def __init__(
        self,
        backbone: Backbone,
        origin: Mapping[str, Any],
        data: BindingData,
        training: ProbeTraining,
        names: Sequence[str],
        seed: int,
    ) -> None:
        """Opens the data set and makes the probes.

        Args:
            backbone: the backbone.
            origin: where its weights come from, plain values.
            data: which scenes.
            training: how probes are trained.
            names: of probes.
            seed: of all that is random.

        Raises:
            ValueError: data that are not there, or that the backbone does not take.
        """
        self.backbone, self.origin, self.data, self.training, self.seed = backbone, dict(origin), data, training, seed
        self.module = _open(data, backbone.preprocessing, seed)
        self.device = next(backbone.parameters()).device
        layouts = {layer: backbone.layouts[layer] for layer in sorted(backbone.layers, key=int)}
        self.probes = BindingProbes(
            layouts, names, self.module.num_classes, training.recipe(), seed=seed, device=self.device
        )
        self.num_train = self.num_val = 0
        self.seconds = 0.0

    def train(self) -> None:
        """Trains the probes.

        Raises:
            ValueError: features that are not finite, or not one scene.
            OSError: a scene that cannot be read.
        """
        start = time.perf_counter()
        loader = self.module.train_dataloader()
        self.num_train, total = len(loader.dataset), self.training.epochs * len(loader)  # type: ignore[arg-type]
        with show_progress(f"probes on {self.backbone.name}, seed {self.seed}") as progress:
            for epoch in range(self.training.epochs):
                loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # SceneData's has it
                for number, batch in enumerate(self._batches(loader), 1):
                    last = epoch == self.training.epochs - 1
                    self.probes.train_step(self.backbone(batch.image), batch, calibrate=last)
                    progress(epoch * len(loader) + number, total)
        self.seconds = time.perf_counter() - start

    def evaluate(self) -> None:
        """Evaluates the probes on val; see `train` for errors."""
        self.num_val = 0
        for batch in self.validation("evaluating probes"):
            self.probes.evaluate_step(self.backbone(batch.image), batch)
            self.num_val += len(batch.image)
        if not self.num_val:
            raise UnreadableImageError(f"not one scene could be read: {(self.unreadable or ['val is empty'])[0]}")

    def validation(self, description: str) -> Iterator[SceneBatch]:
        """Batches of val, on the device, with a progress bar."""
        loader = track(self.module.val_dataloader(), f"{description}, {self.backbone.name}, seed {self.seed}")
        yield from self._batches(loader)

    def results(self) -> list[dict[str, Any]]:
        """A row for each probe of each layer."""
        return [
            {
                **self.about(),
                "layer": found.layer,
                "depth": self.depth(found.layer),
                "probe": found.probe,
                "num_parameters": found.num_parameters,
                **asdict(found.pairs),
                **{f"foreground_{key}": value for key, value in asdict(found.foreground).items()},
            }
            for found in self.probes.results()
        ]

    def about(self) -> dict[str, Any]:
        """What a row of results says of backbone and data."""
        return {
            "model": self.backbone.name,
            **self.origin,
            "dataset": self.module.name,
            "root": self.data.root,
            "seed": self.seed,
        }

    def describe(self) -> dict[str, Any]:
        """Backbone and data, for the JSON file."""
        return {
            **self.about(),
            "model_kwargs": self.backbone.model_kwargs,
            "weights_hash": weights_hash(self.backbone.model),
            "preprocessing": self.backbone.preprocessing,
            "num_train": self.num_train,
            "num_val": self.num_val,
            "num_classes": self.module.num_classes,
            "num_unreadable": len(self.unreadable),
            "unreadable": self.unreadable[:NAMED_UNREADABLE],
            "training_seconds": self.seconds,
        }

    def depth(self, layer: Any) -> float:
        """Where in the backbone a layer is: 1 is the last block."""
        return (layer + 1) / self.backbone.depth

    @property
    def unreadable(self) -> list[str]:
        """Scenes that could not be read."""
        return [line for split in ("train", "validation") for line in self.module.broken(split)]

    def _batches(self, loader: Any) -> Iterator[SceneBatch]:
        for batch in loader:
            if len(batch.image):
                tensors = {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}
                yield batch._replace(**{name: value.to(self.device) for name, value in tensors.items()})


def prepare_scenes(spec: ClassifierSpec, data: BindingData) -> dict[str, Any]:
    """How scenes are prepared: as the backbone wants it, in colours, but for what the options say.

    Raises:
        ValueError: the backbone takes no such images.
    """
    options = ProbingData(img_size=data.img_size, interpolation=data.interpolation, crop_pct=1.0)
    preprocessing = {**prepare(spec, options), "crop_mode": "center"}
    if (channels := preprocessing["input_size"][0]) != 3:
        raise ValueError(f"{spec.model} takes images of {channels} channels: scenes are in colours, which are 3")
    return preprocessing


@renamed(image_size="img_size")
def _open(data: BindingData, preprocessing: Mapping[str, Any], seed: int) -> SceneData:
    """Both splits of the data set, prepared so."""
    module = SceneData(
        name=data.name,
        root=data.root,
        train_split=data.train_split,
        val_split=data.val_split,
        limit=data.limit,
        image_size=preprocessing["input_size"][1],
        length=data.length,
        val_length=data.val_length,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        mean=list(preprocessing["mean"]),
        std=list(preprocessing["std"]),
        interpolation=preprocessing["interpolation"],
        hflip=0.0,
        on_error=data.on_error,
        seed=seed,
    )
    module.setup("fit")
    return module
