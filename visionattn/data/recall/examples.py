"""Problems of recall, which draw examples from a generator of random numbers."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from visionattn.checks import check_range
from visionattn.data.errors import DataError


class Example(NamedTuple):
    """One map of cells with questions.

    Attributes:
        image: cells [C, H, W]: numbers, and words as one channel each that is 0 or 1.
        queries: positions of the cells that ask, counted row by row [Q].
        target: the answers: classes [Q], or values [Q, K].
    """

    image: Tensor
    queries: Tensor
    target: Tensor


class Problem(Protocol):
    """A kind of examples: their shape, and how to draw one."""

    is_regression: ClassVar[bool]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an example."""

    @property
    def num_outputs(self) -> int:
        """Number of classes or of values that a query asks for."""

    def draw(self, rng: Generator) -> Example:
        """Draw an example."""


@dataclass(frozen=True)
class MapRecall:
    """Pairs of a key and, to its right, a value, at random places of a map; other cells ask for the values of keys.

    A key occurs in one pair at most, and values may repeat. A cell that asks holds a key of a pair, and a mark. The
    remaining cells are empty. Channels: keys, values, the mark.

    Args:
        height: rows of cells.
        width: columns of cells.
        pairs: number of pairs.
        num_keys: number of keys to draw from.
        num_values: number of values to draw from.
        queries: number of cells that ask, each for another pair.

    Raises:
        DataError: the cells, pairs or keys are too few.
    """

    height: int
    width: int
    pairs: int
    num_keys: int
    num_values: int
    queries: int

    is_regression: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("data.num_keys", self.num_keys, self.pairs, error=DataError)
        check_range("data.num_values", self.num_values, 2, error=DataError)
        check_range("data.queries", self.queries, 1, self.pairs, error=DataError)
        # Pairs in random places leave single cells between them: a row is full with one for every three cells.
        most = self.height * ((self.width + 1) // 3)
        cells = f"{self.height}×{self.width} cells"
        if self.pairs > most:
            raise DataError(
                f"--data.pairs {self.pairs}: {cells} have room for {most} pairs in random places: pass fewer, or a "
                "larger --data.height or --data.width"
            )
        if (free := self.height * self.width - 2 * self.pairs) < self.queries:
            raise DataError(
                f"--data.queries {self.queries}: {self.pairs} pairs leave {free} of {cells} free: pass fewer, or a "
                "larger --data.height or --data.width"
            )

    def __str__(self) -> str:
        return f"{self.height}×{self.width} cells with {self.pairs} pairs"

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an example."""
        return self.num_keys + self.num_values + 1, self.height, self.width

    @property
    def num_outputs(self) -> int:
        """Number of values."""
        return self.num_values

    def draw(self, rng: Generator) -> Example:
        """Draw an example."""
        places = self._place_pairs(rng)
        free = np.setdiff1d(np.arange(self.height * self.width), np.concatenate([places, places + 1]))
        queries = rng.choice(free, self.queries, replace=False)
        keys = rng.choice(self.num_keys, self.pairs, replace=False)
        values = rng.integers(self.num_values, size=self.pairs)
        cells = np.zeros((self.num_keys + self.num_values + 1, self.height * self.width), np.float32)
        cells[keys, places] = 1
        cells[self.num_keys + values, places + 1] = 1
        cells[keys[: self.queries], queries] = 1  # pairs are in random order
        cells[-1, queries] = 1
        image = torch.from_numpy(cells).unflatten(1, (self.height, self.width))
        return Example(image, torch.from_numpy(queries), torch.from_numpy(values[: self.queries]))

    def _place_pairs(self, rng: Generator) -> np.ndarray:
        """Return the positions of the keys of pairs that do not overlap."""
        taken = np.zeros((self.height, self.width), bool)
        places = []
        for start in rng.permutation(self.height * (self.width - 1)):
            row, column = divmod(int(start), self.width - 1)
            pair = taken[row, column : column + 2]
            if not pair.any():
                pair[:] = True
                places.append(row * self.width + column)
                if len(places) == self.pairs:
                    break
        return np.array(places)


@dataclass(frozen=True)
class SequenceRecall:
    """Multi-query associative recall (MQAR, Zoology, arXiv 2312.04927) as a map of one row.

    Pairs of a key and a value come first. Every key returns once, after a gap that follows a power law, and asks for
    its value. Random words of the vocabulary are between them. The first half of the vocabulary are keys, the second
    half are values; keys and values of a sequence are all different.

    Args:
        length: words of a sequence.
        pairs: number of pairs.
        vocab_size: number of words; half are keys and half are values.
        power_a: exponent of the power law: a gap of i is drawn in proportion to i^(power_a − 1).

    Raises:
        DataError: the words of the sequence or of the vocabulary are too few.
    """

    length: int
    pairs: int
    vocab_size: int
    power_a: float

    is_regression: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("data.power_a", self.power_a, 0, above=True, error=DataError)
        if self.length < 4 * self.pairs:
            raise DataError(
                f"--data.length {self.length}: {self.pairs} pairs need at least {4 * self.pairs} words: pass fewer "
                "--data.pairs, or a longer sequence"
            )
        if self.vocab_size % 2 or self.vocab_size < 2 * self.pairs:
            raise DataError(
                f"--data.vocab_size {self.vocab_size} must be even and at least {2 * self.pairs}: keys and values of "
                f"{self.pairs} pairs are all different"
            )

    def __str__(self) -> str:
        return f"{self.length} words with {self.pairs} pairs"

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an example."""
        return self.vocab_size, 1, self.length

    @property
    def num_outputs(self) -> int:
        """Number of values."""
        return self.vocab_size // 2

    def draw(self, rng: Generator) -> Example:
        """Draw an example."""
        pairs, half = self.pairs, self.vocab_size // 2
        keys, values = (rng.choice(half, pairs, replace=False) for _ in range(2))
        gaps = np.arange((self.length - 2 * pairs) // 2)
        law = (gaps + 1.0) ** (self.power_a - 1)
        queries = 2 * pairs + 2 * rng.choice(gaps, pairs, replace=False, p=law / law.sum())
        words = rng.integers(self.vocab_size, size=self.length)
        words[: 2 * pairs : 2], words[1 : 2 * pairs : 2] = keys, half + values
        words[queries] = keys
        image = torch.zeros(self.vocab_size, 1, self.length)
        image[torch.from_numpy(words), 0, torch.arange(self.length)] = 1
        return Example(image, torch.from_numpy(queries), torch.from_numpy(values))


@dataclass(frozen=True)
class Regression:
    """Linear functions to be found from pairs of x and y: y = A_z x, where z is the region of x.

    Each example draws x from a normal distribution and one matrix A per region, with entries of variance 1/x_dim. The
    signs of the first coordinates of x number its region. Cells in random order hold x and y; those that ask hold x,
    zeros and a mark.

    Args:
        height: rows of cells.
        width: columns of cells.
        queries: number of cells that ask.
        x_dim: coordinates of x.
        y_dim: coordinates of y.
        regions: number of regions, a power of two.

    Raises:
        DataError: a number is out of its bounds.
    """

    height: int
    width: int
    queries: int
    x_dim: int
    y_dim: int
    regions: int

    is_regression: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("data.x_dim", self.x_dim, 1, error=DataError)
        check_range("data.y_dim", self.y_dim, 1, error=DataError)
        check_range("data.queries", self.queries, 1, self.height * self.width - 1, error=DataError)
        if self.regions not in [2**signs for signs in range(self.x_dim + 1)]:
            raise DataError(
                f"--data.regions {self.regions} must be a power of two and at most {2**self.x_dim}, as the signs of "
                f"{self.x_dim} coordinates number them"
            )

    def __str__(self) -> str:
        regions = f" in {self.regions} regions" if self.regions > 1 else ""
        return f"{self.height}×{self.width} cells of x and y = A x{regions}"

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an example."""
        return self.x_dim + self.y_dim + 1, self.height, self.width

    @property
    def num_outputs(self) -> int:
        """Number of coordinates of y."""
        return self.y_dim

    def draw(self, rng: Generator) -> Example:
        """Draw an example."""
        x = rng.standard_normal((self.height * self.width, self.x_dim))
        signs = self.regions.bit_length() - 1
        region = (x[:, :signs] > 0) @ (1 << np.arange(signs))
        matrices = rng.standard_normal((self.regions, self.y_dim, self.x_dim)) / self.x_dim**0.5
        y = np.einsum("nyx,nx->ny", matrices[region], x)
        queries = rng.choice(len(x), self.queries, replace=False)
        mark = np.zeros((len(x), 1))
        mark[queries] = 1
        cells = np.concatenate([x, np.where(mark, 0, y), mark], 1).astype(np.float32)
        image = torch.from_numpy(cells.T).unflatten(1, (self.height, self.width))
        return Example(image, torch.from_numpy(queries), torch.from_numpy(y[queries].astype(np.float32)))
