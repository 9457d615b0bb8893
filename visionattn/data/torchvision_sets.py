"""torchvision's data sets by name: ``torch/food101``, ``torch/dtd/3``."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets  # type: ignore[import-untyped]

from visionattn.data.errors import DataError
from visionattn.data.file_sources import FileSource
from visionattn.data.images import to_mode, upright
from visionattn.suggestions import did_you_mean

Files = Iterable[tuple[str | Path, int]]

FLAG = {
    "train": True,
    "training": True,
    **dict.fromkeys(("validation", "val", "valid", "test", "testing"), False),
}
"""Splits of data sets that take ``train=True`` or ``train=False``."""
TWO = {"train": "train", "validation": "test", "test": "test"}
THREE = {"train": "train", "validation": "val", "test": "test"}
NO_TEST = {"train": "train", "validation": "val", "test": "val"}
WHOLE: dict[str, str] = {}
"""No splits."""

MISSING = ("Dataset not found", "is corrupted", "or corrupted")
"""Words of torchvision's errors for files that are missing or have another checksum."""


def _files_of_loader(dataset: Any) -> Files | None:
    """List paths and class indices of a data set that leaves files to a loader."""
    if not hasattr(dataset, "loader"):
        return None
    undecoded = copy(dataset)
    undecoded.loader, undecoded.transform = str, None  # with this loader, images are their paths
    return (undecoded[index] for index in range(len(undecoded)))


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision.

    Attributes:
        dataset: torchvision's class.
        home: its folder or first file in the root.
        splits: torchvision's name of each split; other names are passed on. Empty for a data set without splits.
        argument: argument of the class that takes the split.
        options: further arguments.
        names: function from the data set to its class names.
        files: function from the data set to paths and class indices; None if it does not read files.
        downloads: whether torchvision can download it.
    """

    dataset: Callable[..., Any]
    home: str
    splits: Mapping[str, str | bool]
    argument: str = "split"
    options: Mapping[str, Any] = field(default_factory=dict)
    names: Callable[[Any], Iterable[Any] | None] = lambda dataset: getattr(dataset, "classes", None)
    files: Callable[[Any], Files | None] = _files_of_loader
    downloads: bool = True

    def open(self, root: str, split: str, download: bool) -> Any:
        """Return torchvision's data set.

        Raises:
            ValueError: it has no such split.
        """
        if self.splits is FLAG and split not in FLAG:
            raise ValueError(f"Unknown split {split!r}. Valid values are 'train' and 'test'")
        own = {self.argument: self.splits.get(split, split)} if self.splits else {}
        return self.dataset(root, **own, **self.options, **({"download": download} if self.downloads else {}))


def _numbers(count: int) -> Callable[[Any], list[str]]:
    return lambda dataset: [str(number) for number in range(count)]


def _variants(name: str, base: TorchvisionSet, argument: str, values: Iterable[Any]) -> dict[str, TorchvisionSet]:
    """Return a data set with each value of an argument, as ``NAME/VALUE``."""
    return {f"{name}/{value}": replace(base, options={argument: value}) for value in values}


def _caltech(folder: str, file: str) -> Callable[[Any], Files]:
    def files(dataset: Any) -> Files:
        places = [Path(dataset.root, folder, category) for category in dataset.categories]
        pairs = zip(dataset.index, dataset.y, strict=True)
        return ((places[label] / file.format(category=label + 1, image=image), label) for image, label in pairs)

    return files


FOOD = TorchvisionSet(datasets.Food101, "food-101", TWO)
PETS = TorchvisionSet(
    datasets.OxfordIIITPet,
    "oxford-iiit-pet",
    TWO | {"train": "trainval"},
    files=lambda dataset: zip(dataset._images, dataset._labels, strict=True),
)
DTD = TorchvisionSet(datasets.DTD, "dtd/dtd", THREE)
AIRCRAFT = TorchvisionSet(datasets.FGVCAircraft, "fgvc-aircraft-2013b", THREE)
IMAGENETTE = TorchvisionSet(datasets.Imagenette, "imagenette2", NO_TEST)
EMNIST = TorchvisionSet(datasets.EMNIST, "EMNIST/raw", FLAG, "train", {"split": "balanced"})
PLACES = TorchvisionSet(datasets.Places365, "categories_places365.txt", NO_TEST | {"train": "train-standard"})
INATURALIST = TorchvisionSet(
    datasets.INaturalist,
    "2021_train",
    {"train": "2021_train", "validation": "2021_valid", "test": "2021_valid"},
    "version",
    names=attrgetter("all_categories"),
)
LEVELS = ("kingdom", "phylum", "class", "order", "family", "genus")
EXPRESSIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

TORCHVISION: dict[str, TorchvisionSet] = {
    "caltech101": TorchvisionSet(
        datasets.Caltech101,
        "caltech101/101_ObjectCategories",
        WHOLE,
        names=attrgetter("categories"),
        files=_caltech("101_ObjectCategories", "image_{image:04d}.jpg"),
    ),
    "caltech256": TorchvisionSet(
        datasets.Caltech256,
        "caltech256/256_ObjectCategories",
        WHOLE,
        names=attrgetter("categories"),
        files=_caltech("256_ObjectCategories", "{category:03d}_{image:04d}.jpg"),
    ),
    "cifar10": TorchvisionSet(datasets.CIFAR10, "cifar-10-batches-py", FLAG, "train"),
    "cifar100": TorchvisionSet(datasets.CIFAR100, "cifar-100-python", FLAG, "train"),
    "clevr": TorchvisionSet(datasets.CLEVRClassification, "clevr/CLEVR_v1.0", NO_TEST, names=_numbers(11)),
    "country211": TorchvisionSet(datasets.Country211, "country211", THREE | {"validation": "valid"}),
    "dtd": DTD,
    **_variants("dtd", DTD, "partition", range(1, 11)),
    "emnist": EMNIST,
    **_variants("emnist", EMNIST, "split", datasets.EMNIST.splits),
    "eurosat": TorchvisionSet(datasets.EuroSAT, "eurosat/2750", WHOLE),
    "fashion_mnist": TorchvisionSet(datasets.FashionMNIST, "FashionMNIST/raw", FLAG, "train"),
    "fer2013": TorchvisionSet(datasets.FER2013, "fer2013", TWO, names=lambda dataset: EXPRESSIONS, downloads=False),
    "fgvc_aircraft": AIRCRAFT,
    **_variants("fgvc_aircraft", AIRCRAFT, "annotation_level", ("variant", "family", "manufacturer")),
    "flowers102": TorchvisionSet(datasets.Flowers102, "flowers-102", THREE),
    "food101": FOOD,
    "gtsrb": TorchvisionSet(
        datasets.GTSRB, "gtsrb/GTSRB", TWO, names=_numbers(43), files=lambda dataset: dataset._samples
    ),
    "imagenet": TorchvisionSet(datasets.ImageNet, "ILSVRC2012_devkit_t12.tar.gz", NO_TEST, downloads=False),
    "imagenette": IMAGENETTE,
    "imagenette/320px": replace(IMAGENETTE, home="imagenette2-320", options={"size": "320px"}),
    "imagenette/160px": replace(IMAGENETTE, home="imagenette2-160", options={"size": "160px"}),
    "inaturalist": INATURALIST,
    **{
        name: replace(found, names=lambda dataset: dataset.categories_index[dataset.target_type[0]])
        for name, found in _variants("inaturalist", INATURALIST, "target_type", LEVELS).items()
    },
    "kmnist": TorchvisionSet(datasets.KMNIST, "KMNIST/raw", FLAG, "train"),
    "mnist": TorchvisionSet(datasets.MNIST, "MNIST/raw", FLAG, "train"),
    "pcam": TorchvisionSet(datasets.PCAM, "pcam", THREE, names=lambda dataset: ("normal", "tumor")),
    "pets": PETS,
    "pets/binary": replace(
        PETS,
        options={"target_types": "binary-category"},
        names=attrgetter("bin_classes"),
        files=lambda dataset: zip(dataset._images, dataset._bin_labels, strict=True),
    ),
    "places365": PLACES,
    "places365/small": replace(PLACES, options={"small": True}),
    "qmnist": TorchvisionSet(datasets.QMNIST, "QMNIST/raw", FLAG, "train"),
    "rendered_sst2": TorchvisionSet(datasets.RenderedSST2, "rendered-sst2", THREE),
    "semeion": TorchvisionSet(datasets.SEMEION, "semeion.data", WHOLE, names=_numbers(10)),
    "stanford_cars": TorchvisionSet(datasets.StanfordCars, "stanford_cars", TWO, downloads=False),
    "stl10": TorchvisionSet(datasets.STL10, "stl10_binary", TWO),
    "sun397": TorchvisionSet(datasets.SUN397, "SUN397", WHOLE),
    "svhn": TorchvisionSet(datasets.SVHN, "train_32x32.mat", TWO, names=_numbers(10)),
    "usps": TorchvisionSet(datasets.USPS, "usps.bz2", FLAG, "train", names=_numbers(10)),
}
"""What follows ``torch/``. torchvision's own names of the classes are also understood: ``torch/OxfordIIITPet``."""

ALIASES = {"inat": "inaturalist", "oxfordiiitpet": "pets", "clevrclassification": "clevr"}


class TorchvisionSource:
    """Images that one of torchvision's data sets keeps in memory or decodes by itself.

    Args:
        dataset: the data set.
        mode: Pillow's mode of the images.

    Attributes:
        class_to_idx: class indices by name.
    """

    def __init__(self, dataset: Any, mode: str) -> None:
        self.dataset, self.mode = dataset, mode
        self.class_to_idx: Mapping[str, int] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return the image in the wanted mode, and its class index."""
        image, target = self.dataset[index]
        return to_mode(upright(image), self.mode), _class_index(target)

    def name_of(self, index: int) -> str:
        """Return the number in the data set."""
        return f"{type(self.dataset).__name__.lower()}/{index}"

    def targets(self) -> Sequence[int]:
        """Return the class indices; a data set without a list of them reads each image."""
        lists = (getattr(self.dataset, name, None) for name in ("targets", "labels"))
        known = next((targets for targets in lists if targets is not None), None)
        if known is None:
            known = [self.dataset[index][1] for index in range(len(self))]
        return [_class_index(target) for target in known]

    def archives(self) -> Sequence[Path | bytes]:
        """Return the images in memory, or else all files under the root."""
        if (data := getattr(self.dataset, "data", None)) is not None:
            return [np.ascontiguousarray(data).tobytes()]
        below = sorted(Path(self.dataset.root).rglob("*")) if self.dataset.root else []
        states = ((path, path.stat()) for path in below if path.is_file())
        lines = (f"{path} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}" for path, s in states)
        return ["\n".join(lines).encode(errors="surrogateescape")]  # of names that are not UTF-8, their bytes


def is_whole(name: str) -> bool:
    """Return whether ``torch/NAME`` is a data set without splits."""
    prefix, _, own = name.lower().partition("/")
    return prefix == "torch" and (found := _find(own)) is not None and not found.splits


def open_torchvision(
    name: str, root: str | None, split: str, mode: str, *, undivided: bool = False, download: bool = False
) -> FileSource | TorchvisionSource:
    """Open one split of a data set of torchvision.

    Args:
        name: ``torch/NAME``.
        root: folder of the downloads.
        split: ``"train"``, ``"validation"`` or ``"test"``, or torchvision's own name of a split.
        mode: Pillow's mode of the images.
        undivided: accept a data set without splits, all of which is opened.
        download: let torchvision download what is missing.

    Raises:
        DataError: an unknown name, no splits, or missing files.
        ValueError: no such split.
    """
    own = name.lower().partition("/")[2]
    found = _find(own)
    if found is None:
        near = did_you_mean(f"torch/{match}" for match in get_close_matches(own, TORCHVISION))
        known = (f"torch/{name}" for name in TORCHVISION if "/" not in name)
        raise DataError(f"unknown data set {name!r}{near or ': one of ' + ', '.join(known)}")
    remedy = "--data.download true downloads it" if found.downloads else "torchvision cannot download it"
    if root is None:
        raise DataError(f"--data.name {name} needs --data.root FOLDER, with {found.home} in it; {remedy}")
    if not download and not Path(root).is_dir():
        raise DataError(f"no such data folder: {root} (--data.root, with {found.home} in it; {remedy})")
    if not found.splits and not undivided:
        raise DataError(f"{name} has no splits: pass --data.val_share 0.2 to validate on a fifth of each class")
    try:
        dataset = found.open(root, split, download)
    except (OSError, RuntimeError) as error:
        raise DataError(_complaint(name, Path(root) / found.home, error, remedy, download)) from error
    files = found.files(dataset)
    source: FileSource | TorchvisionSource
    if files is None:
        source = TorchvisionSource(dataset, mode)
    else:  # sorted, as some data sets list their folders in any order, and images are held out by their order
        source = FileSource(sorted((str(path), _class_index(target)) for path, target in files), None, mode)
    source.class_to_idx = _number(found.names(dataset) or range(max(source.targets(), default=-1) + 1))
    return source


def _find(own: str) -> TorchvisionSet | None:
    """Find a data set by what follows ``torch/``, however its words are joined."""

    def plain(word: str) -> str:
        return word.replace("_", "").replace("-", "")

    stem, slash, variant = plain(own).partition("/")
    known = {plain(key): found for key, found in TORCHVISION.items()}
    return known.get(ALIASES.get(stem, stem) + slash + variant)


def _complaint(name: str, place: Path, error: Exception, remedy: str, download: bool) -> str:
    """Return what is wrong with the files of a data set, whose first is ``place``, and the remedy."""
    said = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):  # torchvision downloads nothing if its folder is there
        return f"{name}: there is no {error.filename}; {f'remove {place} to download it again' if download else remedy}"
    if download:
        return f"cannot download {name}: {said}"
    if any(words in said for words in MISSING):
        advice = remedy if "download=True" in said else said
        return f"{name} is not, or not complete, in {place}; {advice}"
    return f"{name}: {said}"


def _class_index(target: Any) -> int:
    return -1 if target is None else int(target)


def _number(names: Iterable[Any]) -> dict[str, int]:
    """Number class names; synonyms are joined, and names that two classes share get their numbers."""
    joined = [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    shared = Counter(joined)
    return {f"{name} ({index})" if shared[name] > 1 else name: index for index, name in enumerate(joined)}
