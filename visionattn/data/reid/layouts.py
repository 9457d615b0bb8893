"""Layouts of re-identification data sets: their files, identities and cameras."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from visionattn.data.errors import DataError
from visionattn.data.finding import Finder
from visionattn.data.images import read_image

Split = Literal["train", "query", "gallery"]
Protocol = Literal["camera", "vehicleid"]

JUNK = -1
"""Identity of detections without a person, which are left out. Market-1501's 0 stays: no query looks for it."""

NAMED = re.compile(r"(-?\d+)_c(\d+)")
PERSON, VEHICLE = (256, 128), (256, 256)


class ReidImage(NamedTuple):
    """An image, who is on it, and which camera took it, by the data set's own numbers; and a name of who it is."""

    name: str
    pid: int
    camera: int
    identity: str | None = None

    @property
    def label(self) -> str:
        """Name of the identity, otherwise its number."""
        return str(self.pid) if self.identity is None else self.identity


class Count(NamedTuple):
    """Published size of a split; None if it is unknown or not unique."""

    images: int | None = None
    identities: int | None = None


@dataclass(frozen=True)
class Options:
    """Options of some of the data sets.

    Attributes:
        train_val: also train on the validation images of MSMT17.
        gallery_size: test list of VehicleID, by its number of identities.
        val_share: share of the identities in a folder to evaluate on; None if it has its own query and gallery.
        camera: expression for the camera in the names of a folder's images.
    """

    train_val: bool = False
    gallery_size: int = 800
    val_share: float | None = None
    camera: str | None = None


@dataclass(frozen=True)
class Layout:
    """A published data set.

    Attributes:
        title: name of the data set.
        obtain: instructions to obtain it.
        homes: folders that its archive unpacks to, in ``--data.root``.
        parse: function from folders, a split and the options to the images.
        counts: published sizes of the splits.
        size: height and width in pixels that papers use.
        protocol: evaluation protocol.
        zero_counts: whether 0 is an ordinary identity, not the number of distractors.
    """

    title: str
    obtain: str
    homes: tuple[str, ...]
    parse: Callable[[list[Path], Split, Options], list[ReidImage]]
    counts: Callable[[Options], Mapping[Split, Count]]
    size: tuple[int, int] = PERSON
    protocol: Protocol = "camera"
    zero_counts: bool = False

    def images(self, root: Path, split: Split, options: Options) -> list[ReidImage]:
        """List a split.

        Raises:
            DataError: a folder or list that is missing, or not as expected.
        """
        if not root.is_dir():
            raise DataError(f"no such data folder: {root} (--data.root, where {self.title} is). {self.obtain}")
        try:
            found = self.parse([root, *(root / home for home in self.homes)], split, options)
        except FileNotFoundError as error:
            missing = error.args[0]
            raise DataError(f"{self.title}: no {missing} in {root}, nor in {self._homes}. {self.obtain}") from error
        kept = [image for image in found if image.pid != JUNK]
        if not kept and not (split == "query" and self.protocol == "vehicleid"):
            raise DataError(f"{self.title}: no {split} images in {root}. {self.obtain}")
        return kept

    def compare(self, split: Split, images: list[ReidImage], options: Options) -> str | None:
        """Describe how a split differs from its published size; None if it does not."""
        published = self.counts(options).get(split, Count())
        found = Count(len(images), len({image.pid for image in images if image.pid or self.zero_counts}))
        if all(theirs in (None, ours) for ours, theirs in zip(found, published, strict=True)):
            return None
        return f"{split} has {_words(found)} (published: {_words(published)})"

    def open(self, image: ReidImage) -> Image.Image:
        """Decode an image in colour; errors are left to the caller."""
        return read_image(image.name)

    @property
    def _homes(self) -> str:
        return " or ".join(self.homes)


def _words(count: Count) -> str:
    parts = zip(count, ("images", "identities"), strict=True)
    return " of ".join(f"{number:,} {what}" for number, what in parts if number is not None)


def _find(places: list[Path], wanted: str, kind: Callable[[Path], bool] = Path.is_file) -> Path:
    """Return the one folder that has ``wanted``, a file or what ``kind`` names.

    Raises:
        FileNotFoundError: none has; its argument is ``wanted``.
        DataError: several have.
    """
    having = [place / wanted for place in places if kind(place / wanted)]
    if not having:
        raise FileNotFoundError(wanted)
    if len(having) > 1:
        raise DataError(f"both {having[0]} and {having[1]} are there: pass one of {places[0]}'s folders as --data.root")
    return having[0]


def _by_name(folders: Mapping[Split, str], places: list[Path], split: Split, options: Options) -> list[ReidImage]:
    """List images in Market-1501's way: a folder for each split, and names that begin with ``PID_cCAMERA``."""
    folder = _find(places, folders[split], Path.is_dir)
    finder, found = Finder(folder), []
    _, _, names = next(finder.walk())
    finder.report()
    for name in names:
        match = NAMED.match(name)
        if match is None:
            raise DataError(
                f"{folder / name} is not named PID_cCAMERA…, such as 0002_c1s1_000451_03.jpg: rename or remove it"
            )
        found.append(ReidImage(str(folder / name), int(match[1]), int(match[2])))
    return found


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Read the lines of a list, each an image and an identity."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: expected lines of IMAGE IDENTITY") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image, _, pid = line.strip().rpartition(" ")
        if not image or not pid.isdecimal():
            raise DataError(f"{path}, line {number}: expected IMAGE IDENTITY, got {line.strip()!r}")
        yield image, int(pid)


def _msmt17(places: list[Path], split: Split, options: Options) -> list[ReidImage]:
    names = {"train": ("train", "val") if options.train_val else ("train",)}.get(split, (split,))
    lists = [_find(places, f"list_{name}.txt") for name in names]
    home = lists[0].parent
    versions = ("train", "mask_train_v2") if split == "train" else ("test", "mask_test_v2")
    folder = next((home / version for version in versions if (home / version).is_dir()), None)
    if folder is None:
        raise FileNotFoundError(" or ".join(versions))
    found = []
    for path in lists:
        for name, pid in _lines(path):
            fields = Path(name).name.split("_")
            if len(fields) < 4 or not fields[2].isdecimal():
                raise DataError(f"{path}: the third of the fields between _ is the camera, which {name} lacks")
            found.append(ReidImage(str(folder / name), pid, int(fields[2])))
    return found


def _vehicleid(places: list[Path], split: Split, options: Options) -> list[ReidImage]:
    if split == "query":
        return []
    name = "train_list" if split == "train" else f"test_list_{options.gallery_size}"
    path = _find(places, f"train_test_split/{name}.txt")
    folder = path.parents[1] / "image"
    if not folder.is_dir():
        raise FileNotFoundError("image")
    return [ReidImage(str(folder / f"{image}.jpg"), pid, 0) for image, pid in _lines(path)]


# Loader processes that are not forked get their data set pickled: a layout holds neither closures nor lambdas.


def _constant(**counts: Count) -> Callable[[Options], Mapping[Split, Count]]:
    return partial(_published, counts)  # type: ignore[arg-type]  # the names of splits


def _published(counts: Mapping[Split, Count], options: Options) -> Mapping[Split, Count]:
    return counts


def _msmt17_counts(options: Options) -> Mapping[Split, Count]:
    train = Count(32621 if options.train_val else 30248, 1041)
    return {"train": train, "query": Count(11659, 3060), "gallery": Count(82161, 3060)}


def _vehicleid_counts(options: Options) -> Mapping[Split, Count]:
    return {"train": Count(None, 13164), "gallery": Count(None, options.gallery_size)}


MARKET = partial(_by_name, {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"})
VERI = partial(_by_name, {"train": "image_train", "query": "image_query", "gallery": "image_test"})
WITHDRAWN = (
    "Its authors have withdrawn DukeMTMC, from which it is taken, and it cannot be obtained any more: use it only "
    "where you already have the right to, or take another data set"
)
REQUEST = "Nothing is downloaded: obtain it from its authors ({}), unpack it, and pass its folder as --data.root"

LAYOUTS: dict[str, Layout] = {
    "market1501": Layout(
        "Market-1501",
        REQUEST.format("Zheng et al., Scalable Person Re-identification, ICCV 2015"),
        ("Market-1501-v15.09.15",),
        MARKET,
        _constant(train=Count(12936, 751), query=Count(3368, 750), gallery=Count(15913)),
    ),
    "dukemtmc": Layout(
        "DukeMTMC-reID",
        WITHDRAWN,
        ("DukeMTMC-reID",),
        MARKET,
        _constant(train=Count(16522, 702), query=Count(2228, 702), gallery=Count(17661)),
    ),
    "occluded-duke": Layout(
        "Occluded-Duke",
        WITHDRAWN,
        ("Occluded_Duke",),
        MARKET,
        _constant(train=Count(15618, 702), query=Count(2210), gallery=Count(17661)),
    ),
    "msmt17": Layout(
        "MSMT17",
        REQUEST.format("Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-Identification, CVPR 2018"),
        ("MSMT17", "MSMT17_V1", "MSMT17_V2"),
        _msmt17,
        _msmt17_counts,
        zero_counts=True,
    ),
    "veri776": Layout(
        "VeRi-776",
        REQUEST.format("Liu et al., PROVID, IEEE Transactions on Multimedia 2018"),
        ("VeRi",),
        VERI,
        _constant(train=Count(37778, 576), query=Count(1678, 200), gallery=Count(11579, 200)),
        VEHICLE,
    ),
    "vehicleid": Layout(
        "VehicleID",
        REQUEST.format("Liu et al., Deep Relative Distance Learning, CVPR 2016"),
        ("VehicleID", "VehicleID_V1.0"),
        _vehicleid,
        _vehicleid_counts,
        VEHICLE,
        "vehicleid",
    ),
}
