"""Search for a split of a data set, opened with timm's readers, with errors that say what is missing."""

import tarfile
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

from lightning_utilities.core.rank_zero import rank_zero_warn
from PIL import Image
from timm.data.dataset import IterableImageDataset
from timm.data.dataset_factory import create_dataset
from torch import Tensor

from visionattn.data.balance import Targets
from visionattn.data.digits import Digits
from visionattn.data.dominoes import Dominoes, Pairing, read_agreement
from visionattn.data.errors import DataError
from visionattn.data.file_sources import FileSource, TarSource, list_folder, list_tar
from visionattn.data.finding import Finder, is_hidden, natural_key
from visionattn.data.fine_grained import FINE_GRAINED
from visionattn.data.folders import check_class_folders, check_class_names, check_readable, class_name
from visionattn.data.images import Mode, read_image
from visionattn.data.mnist import MNIST
from visionattn.data.streams import check_package, check_shards
from visionattn.data.torchvision_sets import is_whole, open_torchvision

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "test"),
    "test": ("test", "testing", "validation", "val", "valid"),
}
"""Folder names of each split; the first that exists is used."""

Listings = dict[Path, list[tuple[Any, str]]]
"""By folder or archive, its images, each with the name of its folder."""

ITERABLE = ("wds", "tfds", "hfids")
REMOTE = ("torch", "hfds", *ITERABLE)

SHARDS = ", one of the _info.json in --data.root, or shards and their images: 'train-{0000..0099}.tar|100000'"


class Source(Protocol):
    """Images with random access."""

    class_to_idx: Mapping[str, int] | None

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Any, int | Tensor]:
        """Decode one image, of Pillow or an array, with its class index, or 0 or 1 of each class; errors are left."""

    def name_of(self, index: int) -> str:
        """Return the file name, or another name."""

    def targets(self) -> Targets:
        """Return the class indices of all images, if possible without decoding them; or whether each has each class."""


class ImageSource(Source, Protocol):
    """Source that also names its archives."""

    def archives(self) -> Sequence[Path | bytes]:
        """Return the sources of images other than files that ``name_of`` names: archives, or bytes in memory."""


class ReaderSource:
    """timm's readers of Hugging Face's data sets, without its ImageDataset's retries, which hide broken files."""

    def __init__(self, reader: Any, mode: str) -> None:
        self.reader = reader
        self.mode = mode
        self.class_to_idx: Mapping[str, int] | None = getattr(reader, "class_to_idx", None)

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return the image in the wanted mode, and its class index."""
        file, target, *_ = self.reader[index]
        with file:
            return read_image(file, self.mode), -1 if target is None else int(target)

    def name_of(self, index: int) -> str:
        """Return the path of the file, or another name."""
        return str(self.reader.filename(index, absolute=True))

    def targets(self) -> Sequence[int]:
        """Return the class indices of all images."""
        return [int(target) for target in self.reader.iter_targets()]

    def archives(self) -> Sequence[Path | bytes]:
        """Return the tables of Hugging Face."""
        return [Path(table["filename"]) for table in self.reader.dataset.cache_files]


def open_source(
    name: str,
    root: str | None,
    split: str,
    *,
    wanted: str | None = None,
    undivided: bool = False,
    class_to_idx: Mapping[str, int] | None = None,
    class_map: Mapping[str, str] | None = None,
    listings: Listings | None = None,
    mode: Mode = "RGB",
    download: bool = False,
    **options: Any,
) -> ImageSource | IterableImageDataset:
    """Open one split.

    Args:
        name: ``"digits"``, ``"mnist"``, ``"dominoes"`` or ``"dominoes/SHARE"``, one of ``FINE_GRAINED``, ``""`` or
            ``"folder"`` or ``"tar"`` for images under ``root``, one of torchvision's (``torch/…``), or one of timm's
            (``hfds/…``, ``hfids/…``, ``wds/…``, ``tfds/…``).
        root: folder or ``.tar`` file; for MNIST the folder that holds ``MNIST/raw``, for dominoes also ``cifar10``; for
            others the folder of their downloads.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        wanted: the user's own name for the split, which must then exist.
        undivided: take the root itself, or a whole data set of torchvision, for the split, if ``wanted`` is None.
        class_to_idx: class numbers to use; None numbers the classes in natural order.
        class_map: classes of folders that have other names.
        listings: see :func:`open_place`.
        mode: mode of the images, as `read_image` takes it.
        download: download missing data with torchvision or timm.
        **options: further arguments of ``timm.data.create_dataset`` (iterable data sets take ``batch_size``, …).

    Raises:
        DataError: see the message.
    """
    prefix = name.partition("/")[0].lower()
    if name in ("", "folder", "tar"):
        if root is None:
            raise DataError("a folder of images needs --data.root FOLDER, or choose --data.name digits")
        place = Path(root) if undivided and wanted is None else find_split(Path(root), split, wanted)
        return open_place(place, mode, class_to_idx, class_map, listings=listings)
    if isinstance(mode, int):
        raise DataError(f"--data.in_chans {mode} is for images in files: {name} has 1 or 3 channels")
    if wanted and name in ("digits", "mnist", *FINE_GRAINED) and wanted not in chain(*SPLITS.values()):
        raise DataError(f"{name} has no {wanted!r} split: leave out --data.{OPTIONS[split]}, or pass train or test")
    if name == "digits":
        return Digits("train" if (wanted or split) in SPLITS["train"] else "validation", mode)
    if name == "mnist":
        if root is None:
            raise DataError("--data.name mnist needs --data.root FOLDER, where FOLDER/MNIST/raw holds its four files")
        return MNIST(Path(root), "train" if (wanted or split) in SPLITS["train"] else "test", mode)
    if name.partition("/")[0] == "dominoes":
        return _open_dominoes(name, root, wanted or split, mode, download)
    if name in FINE_GRAINED:
        return FINE_GRAINED[name].open(root, "train" if (wanted or split) in SPLITS["train"] else "test", mode)
    if prefix not in REMOTE:
        raise DataError(
            f"unknown data set {name!r}: digits, mnist, dominoes, {', '.join(FINE_GRAINED)}, folder, or one of "
            f"{', '.join(p + '/NAME' for p in REMOTE)}"
        )
    if wanted and is_whole(name):
        raise DataError(f"{name} has no splits: leave out --data.{OPTIONS[split]} {wanted}")
    check_package(name)
    if prefix == "wds" and root is None:
        raise DataError(f"--data.name {name} needs --data.root FOLDER, with the shards and an _info.json")
    try:
        if prefix == "torch":
            return open_torchvision(name, root, wanted or split, mode, undivided=undivided, download=download)
        dataset = create_dataset(
            name,
            root=root,
            split=wanted or split,
            is_training=split == "train",
            download=download,
            input_img_mode=mode,
            **(options if prefix in ITERABLE else {}),
        )
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, ImportError) as error:
        hint = f"; --data.{OPTIONS[split]} names another split" + SHARDS * (prefix == "wds")
        raise DataError(f"data set {name!r}, split {wanted or split!r}: {str(error).rstrip('.')}{hint}") from error
    if isinstance(dataset, IterableImageDataset):
        check_shards(name, dataset)
        return dataset
    return ReaderSource(dataset.reader, mode)


def _open_dominoes(name: str, root: str | None, split: str, mode: str, download: bool) -> Dominoes:
    """Open digits above photos; the test split is that of conflicts.

    Raises:
        DataError: no root, missing files, or no such split.
    """
    pairings: dict[str, Pairing] = {"train": "train", "validation": "validation", "test": "conflicts"}
    pairing = next((pairing for usual, pairing in pairings.items() if split in (usual, pairing)), None)
    if pairing is None:
        raise DataError(f"{name} has no {split!r} split: pass train, validation or conflicts")
    if root is None:
        raise DataError(f"--data.name {name} needs --data.root FOLDER, with MNIST/raw and cifar10/{{train,test}}/CLASS")
    agreement = read_agreement(name)
    part: Literal["train", "test"] = "train" if pairing == "train" else "test"
    folder = Path(root) / "cifar10"
    photos: ImageSource
    if folder.is_dir():
        photos = open_place(find_split(folder, part), mode)
    else:
        try:
            photos = open_torchvision("torch/cifar10", root, part, mode, download=download)
        except DataError as error:
            raise DataError(f"no {folder / part}/CLASS, and {error}") from error
    return Dominoes(MNIST(Path(root), part), photos, pairing, agreement, mode)


def open_place(
    place: Path,
    mode: Mode = "RGB",
    class_to_idx: Mapping[str, int] | None = None,
    class_map: Mapping[str, str] | None = None,
    *,
    listings: Listings | None = None,
) -> FileSource | TarSource:
    """Open a folder of class folders, or a tar of them.

    Args:
        place: the folder or archive.
        mode: Pillow's mode of the images.
        class_to_idx: class numbers to use; None numbers the classes in natural order.
        class_map: classes of folders that have other names.
        listings: images of places that were opened before, which are not listed again; this place is added.

    Raises:
        DataError: no images in it, images outside of class folders, or classes that ``class_to_idx`` does not know.
    """
    listings = {} if listings is None else listings
    if place not in listings:
        listings[place] = list_place(place, isinstance(mode, int))
    found, is_tar = listings[place], place.is_file()
    if not found:
        raise DataError(f"no images under {place} (expected {LAYOUT.format(root=place.parent)})")
    labels = {label for _, label in found}
    check_class_names(place, labels)
    if not is_tar:
        check_class_folders(place, (path for path, _ in found), class_to_idx)
    numbers, class_to_idx = number_classes(place, labels, class_to_idx, class_map)
    samples = [(file, numbers[label]) for file, label in found]
    return TarSource(place, samples, class_to_idx, mode) if is_tar else FileSource(samples, class_to_idx, mode)


def list_place(place: Path, arrays: bool) -> list[tuple[Any, str]]:
    """Return the images in a folder or archive, each with the name of its folder; warn of files passed over.

    Raises:
        DataError: it is missing or cannot be read.
    """
    check_readable(place)
    finder = Finder(place, arrays=arrays)
    try:
        found: list[tuple[Any, str]] = list_tar(finder) if place.is_file() else list_folder(finder)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"cannot read {place}: {error}") from error
    finder.report()
    return found


def number_classes(
    place: Path,
    labels: Collection[str],
    class_to_idx: Mapping[str, int] | None = None,
    class_map: Mapping[str, str] | None = None,
    noun: str = "folder",
) -> tuple[dict[str, int], Mapping[str, int]]:
    """Number the classes that labels stand for; warn of classes without a label.

    Args:
        place: folder, archive or table with the labels.
        labels: names of class folders, or other labels.
        class_to_idx: class numbers to use; None numbers the classes in natural order.
        class_map: classes of labels that have other names.
        noun: word for a label in messages.

    Returns:
        The class index of each label, and the class numbers.

    Raises:
        DataError: a label of another class.
    """
    classes = _name_classes(place, labels, class_map or {}, noun)
    if class_to_idx is None:
        names = sorted(set(classes.values()), key=natural_key)
        class_to_idx = {name: index for index, name in enumerate(names)}
    numbers = {class_name(name): index for name, index in class_to_idx.items()}
    missing = [name for name in numbers if name not in classes.values()]
    if unknown := sorted(set(classes.values()) - set(numbers)):
        label = next(class_name(label) for label, name in classes.items() if name == unknown[0])
        raise DataError(
            f"{place} has {some(unknown)}, which the {len(class_to_idx)} classes trained on "
            f"({few(missing or list(class_to_idx))}) do not include: rename the {noun}s, or pass "
            f"--data.class_map '{{{label}: CLASS, ...}}'"
        )
    if missing:
        rank_zero_warn(f"{place} has no images of {some(missing)}")
    return {label: numbers[name] for label, name in classes.items()}, class_to_idx


def _name_classes(place: Path, labels: Collection[str], class_map: Mapping[str, str], noun: str) -> dict[str, str]:
    """Map labels to classes; warn of a class map's labels that are missing."""
    given = {class_name(label): class_name(name) for label, name in class_map.items()}
    names = {label: class_name(label) for label in labels}
    if strange := sorted(set(given) - set(names.values())):
        rank_zero_warn(f"--data.class_map has {some(strange)}, of which {place} has no {noun}")
    return {label: given.get(name, name) for label, name in names.items()}


LAYOUT = "{root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg"
OPTIONS = {"train": "train_split", "validation": "val_split", "test": "test_split"}


def find_split(root: Path, split: str, wanted: str | None = None) -> Path:
    """Return the folder or ``.tar`` file that holds ``split`` under ``root``.

    Raises:
        DataError: ``root`` or the split is missing.
    """
    if not root.exists():
        raise DataError(f"no such data folder: {root} (--data.root; expected {LAYOUT.format(root=root)})")
    if root.is_file():
        return root
    names = (wanted,) if wanted else SPLITS[split]
    for candidate in (root / name for name in names):
        for place in (candidate, candidate.with_name(candidate.name + ".tar")):
            if place.exists():
                return place
    places = (path for path in root.iterdir() if path.is_dir() or path.suffix == ".tar")
    found = sorted(path.name for path in places if not is_hidden(path.name))
    if not found:
        raise DataError(f"no images under {root} (expected {LAYOUT.format(root=root)})")
    raise DataError(
        f"no {split} split under {root}: looked for {', '.join(names)}; found {', '.join(found[:6])}"
        f"{', …' if len(found) > 6 else ''}. Expected {LAYOUT.format(root=root)}, or name it with "
        f"--data.{OPTIONS[split]}"
    )


def has_split(root: Path, split: str) -> bool:
    """Return whether a folder has a folder or ``.tar`` of one of the usual names of a split."""
    return any((root / f"{name}{kind}").exists() for name in SPLITS[split] for kind in ("", ".tar"))


def is_undivided(root: str | None) -> bool:
    """Return whether the root is a folder without any split; a file is divided into none."""
    return root is not None and Path(root).is_dir() and not any(has_split(Path(root), split) for split in SPLITS)


def some(names: Sequence[str]) -> str:
    """Format names as ``class a`` or ``classes a, b, c, …``."""
    return f"class{'es' if len(names) > 1 else ''} {few(names)}"


def few(names: Sequence[str]) -> str:
    """Format names as ``a, b, c, …``."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
