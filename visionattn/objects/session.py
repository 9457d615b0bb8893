"""Object-binding session: train and evaluate probes on all layers of one frozen backbone."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from visionattn.data import UnreadableImageError
from visionattn.data.scenes import SceneBatch
from visionattn.data.scenes.opening import SceneName
from visionattn.evaluation.as_trained import DataOptions, open_scenes
from visionattn.evaluation.device import AUTOCAST_DTYPES, Precision, resolve_device
from visionattn.evaluation.loop import NAMED_UNREADABLE
from visionattn.evaluation.source import LoadedModel
from visionattn.objects.binding import BindingProbes, ProbeTraining
from visionattn.objects.results import BindingResults, BindingRow, SessionRow
from visionattn.probing.features.splits import prepare
from visionattn.probing.frozen import FrozenBackbone, weights_hash
from visionattn.probing.options import ProbingData
from visionattn.progress import ShowProgress, no_progress
from visionattn.training.preprocessing import describe_preprocessing

DEFAULT_PROBES = ["quadratic", "diagonal", "linear", "class", "identity", "cosine", "dot"]
"""Probes of a session by default."""


@dataclass(frozen=True)
class BindingData(DataOptions):
    """Scenes and their preprocessing, by default the backbone's own.

    More arguments: `visionattn.evaluation.DataOptions`.

    Args:
        name: synthetic, drawn on the fly; coco_panoptic; ade20k; or folder, with masks of instance numbers. By default
            folder if there is a root, else synthetic.
        batch_size: images per step of backbone and probes.
        train_split: name of the split for training, if it is not found by itself.
        val_split: name of the split for evaluation, if it is not found by itself.
        limit: number of scenes to use from each split, the first ones; by default all.
        length: number of synthetic scenes for training.
        val_length: number of synthetic scenes for evaluation.
        img_size: height and width in pixels.
        interpolation: bicubic, bilinear, nearest, …
    """

    name: SceneName | None = None
    batch_size: int = 16
    train_split: str | None = None
    val_split: str | None = None
    limit: int | None = None
    length: int = 1000
    val_length: int = 200
    img_size: int | None = None
    interpolation: str | None = None


DATA, TRAINING = BindingData(), ProbeTraining()


class BindingSession:
    """Probes on the layers of a frozen backbone.

    Attributes:
        backbone: The backbone, on its device; its blocks give tokens without the final norm.
        module: The data module of the scenes.
        probes: The probes of all layers, on the same device.
        preparation: The preprocessing in words, compared with the model's own.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        data: BindingData = DATA,
        training: ProbeTraining = TRAINING,
        probes: Sequence[str] = DEFAULT_PROBES,
        layers: Sequence[int] | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "32-true",
        progress: ShowProgress = no_progress,
    ) -> None:
        """Freeze the model, open the data set and create the probes.

        Args:
            loaded: Model with its preprocessing, as from `visionattn.load_model`. The model is changed in place.
            data: Scenes.
            training: Options of the probes and their training.
            probes: Names of probes, see `visionattn.objects.probes.PROBES`.
            layers: Numbers of blocks (of stages in hierarchical models), from 0, or from the last if negative; by
                default all.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
            precision: Precision of the backbone; probes are trained in single precision.
            progress: Called at the start of each phase, to show its progress.

        Raises:
            ValueError: The data are missing, or the model does not take them, or a probe or layer is unknown.
        """
        spec, self.origin, self.data, self.training = loaded.spec, loaded.origin, data, training
        self.seed, self.device, self.progress = training.seed, resolve_device(device), progress
        options = ProbingData(img_size=data.img_size, crop_pct=1.0, interpolation=data.interpolation)
        preprocessing = {**prepare(spec, options), "crop_mode": "center"}
        if (channels := preprocessing["input_size"][0]) != 3:
            raise ValueError(f"{spec.model} takes images of {channels} channels, and scenes have 3")
        self.backbone = FrozenBackbone(
            loaded.model.to(self.device),
            spec.model,
            layers,
            spec.model_kwargs,
            preprocessing,
            AUTOCAST_DTYPES.get(precision),
            norm_blocks=False,
        )
        self.preparation = describe_preprocessing(preprocessing, spec.preprocessing, loaded.name)
        self.module = open_scenes(
            spec, data, "fit", preprocessing=preprocessing, name=data.name, hflip=0.0, seed=self.seed
        )
        layouts = {layer: self.backbone.layouts[layer] for layer in sorted(self.backbone.layers, key=int)}
        self.probes = BindingProbes(layouts, probes, self.module.num_classes, training, device=self.device)
        self.num_train = self.num_val = 0
        self.training_seconds = 0.0

    def run(self) -> BindingResults:
        """Train and evaluate the probes; call it once.

        Raises:
            ValueError: The features are not finite, or not one scene could be read.
            OSError: A scene could not be read.
        """
        self.train()
        self.evaluate()
        return BindingResults(rows=self.rows(), models=[self.describe()])

    def train(self) -> None:
        """Train the probes; see `run` for errors."""
        start = time.perf_counter()
        loader, epochs = self.module.train_dataloader(), self.training.epochs
        self.num_train, total = len(loader.dataset), epochs * len(loader)  # type: ignore[arg-type]
        with self.progress(f"probes on {self.backbone.name}, seed {self.seed}", "steps") as report:
            for epoch in range(epochs):
                loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # SceneData's has it
                for number, batch in enumerate(self._on_device(loader), 1):
                    self.probes.train_step(self.backbone(batch.image), batch, calibrate=epoch == epochs - 1)
                    report(epoch * len(loader) + number, total)
        self.training_seconds = time.perf_counter() - start

    def evaluate(self) -> None:
        """Evaluate the probes on the validation split; see `run` for errors."""
        self.num_val = 0
        for batch in self.validation("evaluating probes"):
            self.probes.evaluate_step(self.backbone(batch.image), batch)
            self.num_val += len(batch.image)
        if not self.num_val:
            raise UnreadableImageError(f"not one scene could be read: {(self.unreadable or ['val is empty'])[0]}")

    def validation(self, description: str) -> Iterator[SceneBatch]:
        """Yield the batches of the validation split, on the device, and show the progress."""
        loader = self.module.val_dataloader()
        with self.progress(f"{description}, {self.backbone.name}, seed {self.seed}", "batches") as report:
            for number, batch in enumerate(self._on_device(loader), 1):
                yield batch
                report(number, len(loader))

    def rows(self) -> list[BindingRow]:
        """Return the rates of each probe on each layer."""
        return [
            BindingRow(
                **self.about(),
                layer=found.layer,
                depth=self.depth(found.layer),
                probe=found.probe,
                num_parameters=found.num_parameters,
                **asdict(found.pairs),
                **{f"foreground_{key}": value for key, value in asdict(found.foreground).items()},
            )
            for found in self.probes.results()
        ]

    def describe(self) -> SessionRow:
        """Return model and data in full."""
        return SessionRow(
            **self.about(),
            model_kwargs=self.backbone.model_kwargs,
            weights_hash=weights_hash(self.backbone.model),
            preprocessing=self.backbone.preprocessing,
            num_train=self.num_train,
            num_val=self.num_val,
            num_classes=self.module.num_classes,
            num_unreadable=len(self.unreadable),
            unreadable=self.unreadable[:NAMED_UNREADABLE],
            training_seconds=self.training_seconds,
        )

    def about(self) -> dict[str, Any]:
        """Return the fields of `visionattn.objects.results.ResultRow`."""
        names = {"model": self.backbone.name, "dataset": self.module.name, "root": self.data.root, "seed": self.seed}
        return {**names, **asdict(self.origin)}

    def depth(self, layer: int) -> float:
        """Return the depth of a layer in the backbone; 1 is the last block."""
        return (layer + 1) / self.backbone.depth

    @property
    def unreadable(self) -> list[str]:
        """Scenes that could not be read, with the reason."""
        return [line for split in ("train", "validation") for line in self.module.broken(split)]

    def _on_device(self, loader: Any) -> Iterator[SceneBatch]:
        """Yield the batches that hold scenes, on the device."""
        for batch in loader:
            if len(batch.image):
                yield batch.to(self.device)
