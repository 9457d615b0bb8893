"""Data sets for fine-grained classification: birds, cars and aircraft."""

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_warn
from torchvision import datasets  # type: ignore[import-untyped]

from visionattn.data.errors import DataError
from visionattn.data.file_sources import FileSource

Split = Literal["train", "test"]
Files = list[tuple[str, int]]


@dataclass(frozen=True)
class FineGrained:
    """A published data set.

    Attributes:
        title: name of the data set.
        home: folder that its archive unpacks to; ``--data.root`` is this folder or the one above.
        expected: expected content of the folder.
        obtain: instructions to obtain it.
        parse: function from the folder and a split to files and class names.
        counts: published numbers of images for training, images for testing, and classes.
    """

    title: str
    home: str
    expected: str
    obtain: str
    parse: Callable[[Path, Split], tuple[Files, list[str]]]
    counts: tuple[int, int, int]

    def open(self, root: str | None, split: Split, mode: str) -> FileSource:
        """Open a split; warn if its size is not the published one.

        Raises:
            DataError: files that are missing, or not as they should be.
        """
        remedy = f"{self.title} is expected in ROOT/{self.home}, with {self.expected}. {self.obtain}"
        if root is None:
            raise DataError(f"no --data.root: {remedy}")
        place = Path(root)
        home = place if place.name == self.home else place / self.home
        if not home.is_dir():
            raise DataError(f"no such data folder: {home}: {remedy}")
        try:
            files, classes = self.parse(home, split)
        except Exception as error:  # a damaged .mat makes scipy raise whatever it runs into
            raise DataError(f"cannot read {split} images from {home}: {_in_words(error)}. {remedy}") from error
        found, published = (len(files), len(classes)), (self.counts[split == "test"], self.counts[2])
        if found != published:
            rank_zero_warn(
                f"{home} has {found[0]:,} {split} images of {found[1]:,} classes, where {self.title} was published "
                f"with {published[0]:,} of {published[1]:,}"
            )
        return FileSource(files, {name: index for index, name in enumerate(classes)}, mode)


def _in_words(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no {error.filename}"
    if isinstance(error, KeyError):
        return f"there is no entry for {error}"
    return " ".join(str(error).split()) or type(error).__name__


def _table(path: Path) -> dict[int, str]:
    """Read lines of a number and a word."""
    rows: dict[int, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        key, _, value = line.strip().partition(" ")
        if not key.isdigit() or not value:
            raise ValueError(f"line {number} of {path} is not a number and a word: {line!r}")
        rows[int(key)] = value
    return rows


def _cub200(home: Path, split: Split) -> tuple[Files, list[str]]:
    names, classes, labels, parts = (
        _table(home / f"{table}.txt") for table in ("images", "classes", "image_class_labels", "train_test_split")
    )
    order = {number: index for index, number in enumerate(sorted(classes))}
    for image in names:
        if parts[image] not in ("0", "1"):
            raise ValueError(f"image {image} is for training (1) or testing (0), got {parts[image]!r}")
    wanted = "1" if split == "train" else "0"
    chosen = [image for image in sorted(names) if parts[image] == wanted]
    files = [(str(home / "images" / names[image]), order[int(labels[image])]) for image in chosen]
    return files, [classes[number] for number in sorted(classes)]


def _torchvision(
    dataset: Callable[..., Any], train: str, needed: Mapping[Split, tuple[str, ...]]
) -> Callable[[Path, Split], tuple[Files, list[str]]]:
    def parse(home: Path, split: Split) -> tuple[Files, list[str]]:
        # Of what is missing, torchvision does not always tell the name.
        for path in (home / name for name in needed[split]):
            if not path.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        # With this loader, torchvision's images are their paths.
        found = dataset(home.parent, train if split == "train" else "test", loader=str)
        return [(path, int(target)) for path, target in (found[i] for i in range(len(found)))], list(found.classes)

    return parse


FINE_GRAINED: dict[str, FineGrained] = {
    "cub200": FineGrained(
        "CUB-200-2011",
        "CUB_200_2011",
        "images/, images.txt, classes.txt, image_class_labels.txt and train_test_split.txt",
        "Nothing is downloaded: obtain it from Caltech's data repository (CaltechDATA) and unpack it",
        _cub200,
        (5994, 5794, 200),
    ),
    "stanford_cars": FineGrained(
        "Stanford Cars",
        "stanford_cars",
        "devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat",
        "Its first home is gone, so that nothing can be downloaded: obtain a copy from somebody who has it",
        _torchvision(
            datasets.StanfordCars,
            "train",
            {
                "train": ("devkit", "devkit/cars_train_annos.mat", "cars_train"),
                "test": ("devkit", "cars_test_annos_withlabels.mat", "cars_test"),
            },
        ),
        (8144, 8041, 196),
    ),
    "fgvc_aircraft": FineGrained(
        "FGVC-Aircraft",
        "fgvc-aircraft-2013b",
        "data/images/, data/variants.txt and data/images_variant_{trainval,test}.txt",
        "Nothing is downloaded: obtain it from the Visual Geometry Group in Oxford and unpack it",
        _torchvision(datasets.FGVCAircraft, "trainval", {"train": ("data/images",), "test": ("data/images",)}),
        (6667, 3333, 100),
    ),
}
