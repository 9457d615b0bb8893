"""The splits of a data set of images with classes, and the images that are held out of its training split."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data.dataset import IterableImageDataset

from visionattn.checks import check_range
from visionattn.data.errors import DataError
from visionattn.data.labels import LabelledFiles
from visionattn.data.sources import ImageSource, Listings, has_split, is_undivided, open_source
from visionattn.data.subsets import first_per_class, hold_out
from visionattn.data.torchvision_sets import is_whole

FOLDERS = ("folder", "tar")
"""Names of data sets in class folders."""


@dataclass
class SplitOpener:
    """Opens the splits of a data set, and keeps the images that the options ask for.

    Args:
        name: name of the data set, as :func:`~visionattn.data.sources.open_source` takes it.
        root: its folder or file.
        wanted: the user's own name of each split, or None.
        tables: tables with labels, in place of class folders.
        class_map: classes of folders, or labels, that have other names.
        download: whether to download missing data.
        limit_per_class: largest number of training images per class.
        holdout_per_class: number of training images per class to validate on.
        val_share: share of the training images of each class to validate on.
        listings: files and labels that were read before, see :func:`~visionattn.data.sources.open_place`.

    Raises:
        DataError: a number out of its bounds, or two options for the validation images.
    """

    name: str
    root: str | None
    wanted: Mapping[str, str | None]
    tables: LabelledFiles | None
    class_map: Mapping[str, str]
    download: bool
    limit_per_class: int | None
    holdout_per_class: int | None
    val_share: float | None
    listings: Listings = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range("data.limit_per_class", self.limit_per_class, 1, error=DataError)
        check_range("data.holdout_per_class", self.holdout_per_class, 1, error=DataError)
        check_range("data.val_share", self.val_share, 0, 1, above=True, error=DataError)
        ways = {
            "holdout_per_class": self.holdout_per_class,
            "val_share": self.val_share,
            "val_split": self.wanted["validation"],
            "val_labels": self.tables and self.tables.given.get("validation"),
        }
        given = [f"--data.{option} {value}" for option, value in ways.items() if value is not None]
        if len(given) > 1:
            raise DataError(f"{given[0]} takes the place of {given[1]}: leave one out")

    @property
    def holds_out(self) -> bool:
        """Return whether validation images are held out of the training split."""
        return self.holdout_per_class is not None or self.val_share is not None

    @property
    def divides_itself(self) -> bool:
        """Return whether there are no validation images of their own, so that they are held out here."""
        if not self.holds_out:
            return False
        if self.tables is not None:
            return not self.tables.has_split("validation")
        if self.name not in FOLDERS:
            return is_whole(self.name)
        return self.root is not None and not has_split(Path(self.root), "validation")

    def is_held_out(self, split: str) -> bool:
        """Return whether a split consists of the held-out images: validation, and test if there are no test images."""
        if split != "test":
            return self.holds_out and split == "validation"
        own = self.wanted["test"] is not None or (self.tables is not None and "test" in self.tables.given)
        return self.divides_itself and not own

    def open(
        self, split: str, class_to_idx: Mapping[str, int] | None, seed: int, **options: Any
    ) -> ImageSource | IterableImageDataset:
        """Open a split.

        Args:
            split: ``train``, ``validation`` or ``test``.
            class_to_idx: class numbers to use; None numbers the classes in natural order.
            seed: seed of the choice of ``limit_per_class``, and of timm's data sets that are read in order.
            **options: ``mode`` and further options of :func:`~visionattn.data.sources.open_source`.

        Raises:
            DataError: missing data, or data that the options do not fit.
        """
        held_out = self.is_held_out(split)
        place = "train" if held_out else split
        source = self._open_whole(place, class_to_idx, seed=seed, **options)
        numbers = ("holdout_per_class", "val_share", "limit_per_class")
        asked = [option for option in numbers if getattr(self, option) is not None]
        if place != "train" or not asked:
            return source
        if isinstance(source, IterableImageDataset):
            raise DataError(f"data set {self.name!r} is read in order: leave out --data.{asked[0]}")
        if self.holds_out:
            source = hold_out(source, self.holdout_per_class, self.val_share)[held_out]
        if self.limit_per_class is not None and not held_out:
            source = first_per_class(source, self.limit_per_class, seed)
        return source

    def _open_whole(
        self, split: str, class_to_idx: Mapping[str, int] | None, **options: Any
    ) -> ImageSource | IterableImageDataset:
        wanted = self.wanted[split]
        if self.tables is not None:
            return self.tables.open(split, wanted, class_to_idx, self.class_map, options["mode"])
        return open_source(
            self.name,
            self.root,
            split,
            wanted=wanted,
            undivided=self.divides_itself and (self.name not in FOLDERS or is_undivided(self.root)),
            class_to_idx=class_to_idx,
            class_map=self.class_map,
            listings=self.listings,
            download=self.download,
            **options,
        )
