"""Object-binding session: train and evaluate probes on all layers of one frozen backbone."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from visionattn.data import UnreadableImageError
from visionattn.data.scenes import SceneBatch
from visionattn.evaluation.as_trained import open_scenes
from visionattn.evaluation.device import AUTOCAST_DTYPES, Precision, resolve_device
from visionattn.evaluation.loop import NAMED_UNREADABLE
from visionattn.evaluation.source import LoadedModel
from visionattn.objects.binding import BindingProbes, ProbeTraining
from visionattn.objects.results import BindingResults, BindingRow
from visionattn.objects.token_cache import TokenCache
from visionattn.probing.frozen import FrozenBackbone, weights_hash
from visionattn.probing.rows import SessionRow
from visionattn.probing.scenes import ProbingScenes
from visionattn.progress import ShowProgress, no_progress
from visionattn.training.preprocessing import describe_preprocessing

DEFAULT_PROBES = ["quadratic", "diagonal", "linear", "class", "identity", "cosine", "dot"]
"""Probes of a session by default."""


BindingData = ProbingScenes
"""Scenes of a session."""

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
        preprocessing = data.prepare(spec)
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
        tokens = TokenCache(self.backbone, int(1e9 * self.training.cache))
        self.num_train, total = len(loader.dataset), epochs * len(loader)  # type: ignore[arg-type]
        with self.progress(f"probes on {self.backbone.name}, seed {self.seed}", "steps") as report:
            for epoch in range(epochs):
                loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # SceneData's has it
                for number, batch in enumerate(self._on_device(loader), 1):
                    self.probes.train_step(tokens(batch), batch, calibrate=epoch == epochs - 1)
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
        """Return the fields of `visionattn.probing.rows.ResultRow`."""
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
