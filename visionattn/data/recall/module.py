"""Tests of memory as a DataModule."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from visionattn.checks import check_choice, check_range
from visionattn.data.errors import DataError
from visionattn.data.loading import ImageLoader
from visionattn.data.module import ImageData
from visionattn.data.options import make_preprocessing
from visionattn.data.recall.examples import Example, MapRecall, Problem, Regression, SequenceRecall
from visionattn.data.sampling import Draw

RecallName = Literal["map", "mqar", "regression"]

FIXED = {"validation": 1, "test": 2}
"""Number of each split whose examples are the same for all seeds."""


class RecallBatch(NamedTuple):
    """A batch, as every loader yields it.

    Attributes:
        image: maps of cells [B, C, H, W]; B is smaller than the batch size, or 0, if no examples are left.
        queries: positions of the cells that ask [B, Q], counted row by row.
        target: the answers: classes [B, Q], or values [B, Q, K].
        errors: none, as nothing is read.
    """

    image: Tensor
    queries: Tensor
    target: Tensor
    errors: tuple[str, ...] = ()


class RecallData(ImageData):
    """Associative recall and regression in context. Examples are made on demand, and nothing is downloaded.

    Training examples depend on the seed, the epoch and their place in it, and never repeat. Those of validation and
    test are always the same.

    Args:
        name: ``map``, the default: pairs of a key and a value in neighbouring cells of a map, and cells that ask for
            the values of keys; ``mqar``: multi-query associative recall in a sequence, a map of one row (Arora et al.,
            2023, https://arxiv.org/abs/2312.04927); ``regression``: pairs of x and y = A x, and cells that ask for y.
        height: map and regression: rows of cells.
        width: map and regression: columns of cells.
        pairs: map and mqar: number of pairs.
        num_keys: map: number of keys to draw from, by default twice ``pairs``.
        num_values: map: number of values to draw from.
        queries: map and regression: number of cells that ask, by default ``pairs``, or 16 in regression.
        length: mqar: length of a sequence.
        vocab_size: mqar: number of words, half of them keys and half of them values.
        power_a: mqar: exponent of the power law of gaps between pairs and questions.
        x_dim: regression: coordinates of x.
        y_dim: regression: coordinates of y.
        regions: regression: number of regions, a power of two. Each has its own A, and the signs of x number them.
        train_length: number of examples of an epoch.
        val_length: number of examples of validation, and of test.
        batch_size: examples per step and per device.
        eval_batch_size: examples per step and per device in evaluation, by default ``batch_size``.
        num_workers: loader processes per device; 0, the default, makes examples in the process that trains.
        seed: seed of the training examples, by default that of ``seed_everything``.

    Raises:
        DataError: an option is out of its bounds, or two do not go together.
    """

    weights_decide = frozenset()

    def __init__(
        self,
        name: RecallName | None = None,
        height: int = 8,
        width: int = 8,
        pairs: int = 6,
        num_keys: int | None = None,
        num_values: int = 6,
        queries: int | None = None,
        length: int = 64,
        vocab_size: int = 256,
        power_a: float = 0.01,
        x_dim: int = 4,
        y_dim: int = 4,
        regions: int = 1,
        train_length: int = 19200,
        val_length: int = 2000,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, "raise", seed)
        self.name: str = name or "map"
        sizes = {"height": height, "width": width, "pairs": pairs, "length": length}
        for option, size in {**sizes, "train_length": train_length, "val_length": val_length}.items():
            check_range(f"data.{option}", size, 1, error=DataError)
        check_choice("data.name", self.name, get_args(RecallName), error=DataError)
        self.problem: Problem
        if self.name == "map":
            keys, asking = (
                default if given is None else given for given, default in ((num_keys, 2 * pairs), (queries, pairs))
            )
            self.problem = MapRecall(height, width, pairs, keys, num_values, asking)
        elif self.name == "mqar":
            self.problem = SequenceRecall(length, pairs, vocab_size, power_a)
        else:
            self.problem = Regression(height, width, 16 if queries is None else queries, x_dim, y_dim, regions)
        self.lengths = {"train": train_length, "validation": val_length, "test": val_length}
        channels = self.problem.input_size[0]
        self.preprocessing = make_preprocessing(self.problem.input_size, [0.0] * channels, [1.0] * channels, None)

    @property
    def class_names(self) -> list[str]:
        """No names: keys and values are numbers."""
        return []

    def setup(self, stage: str) -> None:
        """Refuse to predict."""
        if stage == "predict":
            raise DataError("recall has answers to compare with, there is nothing to predict: use validate")

    def loader(self, split: str) -> ImageLoader:
        """Make the loader of a split."""
        return ImageLoader(
            RecallDataset(self.problem, self.lengths[split], FIXED.get(split, 0)),
            **self.batches(self.lengths[split], split == "train"),
            **self.worker_options,
            collate_fn=collate,
        )

    def describe(self) -> str:
        """Return the problem and the sizes of its splits, in words."""
        sizes = ", ".join(f"{length:,} {split}" for split, length in self.lengths.items())
        return f"{self.problem}: {sizes} examples"


class RecallDataset(Dataset[Example | None]):
    """Examples of a problem by their draws: by the seed of a draw, or by its number in a fixed split."""

    def __init__(self, problem: Problem, length: int, split: int) -> None:
        self.problem, self.length, self.split = problem, length, split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: Draw) -> Example | None:
        """Return an example; None for a filler."""
        if draw.image < 0:
            return None
        key = [self.split, draw.image] if draw.seed is None else [draw.seed]
        return self.problem.draw(np.random.default_rng(key))


def collate(examples: Sequence[Example | None]) -> RecallBatch:
    """Stack the examples that are no fillers."""
    found = [example for example in examples if example is not None]
    image, queries, target = (torch.stack(parts) for parts in zip(*(found or [BLANK]), strict=True))
    return RecallBatch(image[: len(found)], queries[: len(found)], target[: len(found)])


BLANK = Example(torch.zeros(1, 1, 1), torch.zeros(1, dtype=torch.long), torch.zeros(1))
"""Example in the place of fillers, if a batch has no other."""
