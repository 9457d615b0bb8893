"""Frozen models that a command compares, with random weights and seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from visionattn.cli.errors import UsageError
from visionattn.evaluation.source import LoadedModel, ModelSource, draw_weights
from visionattn.io import slug
from visionattn.training import Weights, check_model_name


class FrozenRun(NamedTuple):
    """A model of a seed, with its weights or with random ones."""

    name: str | None
    randomized: bool
    seed: int

    def file_stem(self, model: str) -> str:
        """Return the name of the run's files, without suffixes."""
        return f"{slug(model)}{'-random' if self.randomized else ''}"


@dataclass(frozen=True)
class FrozenModels:
    """Models, each with `control` also with random weights, and for each of `seeds` seeds from `first_seed` on.

    The other arguments are those of `visionattn.evaluation.ModelSource`.

    Raises:
        UsageError: Options that do not fit together.
        ValueError: An unknown model.
    """

    models: Sequence[str] | None
    checkpoint: Path | None
    pretrained: bool
    model_kwargs: Mapping[str, Any] | None
    weights: Weights
    control: bool
    seeds: int
    first_seed: int

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.models and len(self.models) > 1:
            raise UsageError(f"--checkpoint is of one model: give one --model or none, not {','.join(self.models)}")
        if self.control and self.checkpoint is None and not self.pretrained:
            raise UsageError(
                "--control random is compared with trained weights: give --pretrained or --checkpoint FILE"
            )
        if self.seeds < 1:
            raise UsageError(f"--seeds must be at least 1, got {self.seeds}")
        for name in self.models or ():
            check_model_name(name)

    @property
    def runs(self) -> list[FrozenRun]:
        """All runs, model by model."""
        names: Sequence[str | None] = self.models or [None]
        return [
            FrozenRun(name, randomized, seed)
            for name in names
            for randomized in ((False, True) if self.control else (False,))
            for seed in range(self.first_seed, self.first_seed + self.seeds)
        ]

    @property
    def others(self) -> Iterator[FrozenRun]:
        """The first run of each model but the first, to report what is wrong with it before hours of training."""
        return (FrozenRun(name, False, self.first_seed) for name in (self.models or [])[1:])

    def load(self, run: FrozenRun) -> LoadedModel:
        """Load the model of a run; see `visionattn.evaluation.ModelSource` for errors."""
        source = ModelSource(self.checkpoint, run.name, self.pretrained, self.model_kwargs, self.weights)
        loaded = source.load_frozen(run.seed)
        return draw_weights(loaded.spec, run.seed) if run.randomized else loaded
