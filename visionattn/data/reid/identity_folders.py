"""A folder for each identity: ROOT/IDENTITY/*.jpg, or such folders in ROOT/train, ROOT/query and ROOT/gallery."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from visionattn.data.errors import DataError
from visionattn.data.file_sources import list_folder
from visionattn.data.finding import Finder, natural_key
from visionattn.data.folders import check_readable, class_name
from visionattn.data.images import read_image
from visionattn.data.reid.layouts import LAYOUTS, PERSON, Options, Protocol, ReidImage, Split
from visionattn.data.sources import is_undivided

VAL_SHARE = 0.2
"""Share of the identities to evaluate on, unless an option says another."""

MARKS = {
    "bounding_box_train": "market1501",
    "bounding_box_test": "market1501",
    "list_query.txt": "msmt17",
    "image_query": "veri776",
    "train_test_split": "vehicleid",
}
"""Files and folders that tell a published data set."""


class Found(NamedTuple):
    """An image, its identity, and its path below the identity's folder."""

    path: str
    identity: str
    name: str


class IdentityFolders:
    """Images in a folder for each identity; the interface is that of a Layout.

    With ``val_share`` that share of the identities is evaluated on, and the others are trained on. Of each identity to
    evaluate on, one image is a query and the others are in the gallery; an only image is in the gallery. The choices
    are those of a hash of the names: they look random, are the same on every machine, and hardly change when identities
    are added. Without ``val_share`` the root has folders ``train``, ``query`` and ``gallery``.

    Without an expression for the camera, each image has a camera of its own, so that every other image of a query's
    identity is a match.
    """

    title = "a folder for each identity"
    obtain = "It has a folder for each person, vehicle or animal, with the images"
    size = PERSON
    protocol: Protocol = "camera"
    zero_counts = True

    def images(self, root: Path, split: Split, options: Options) -> list[ReidImage]:
        """List the images of a split.

        Raises:
            DataError: folders that are not as expected, too few identities, or no image to find.
        """
        if options.val_share is not None:
            parts = _divide(root, split, options.val_share)
        else:
            wanted: tuple[Split, ...] = ("train",) if split == "train" else ("query", "gallery")
            parts = {part: _find(root / part, part == split) for part in wanted}
        if not parts[split]:
            raise DataError(f"no {split} images under {root} (expected {root / split}/IDENTITY/*.jpg)")
        found = [image for images in parts.values() for image in images]
        numbers = _number(image.identity for image in found)
        cameras = _cameras(found, options.camera)
        return [ReidImage(x.path, numbers[x.identity], cameras[x.path], x.identity) for x in parts[split]]

    def compare(self, split: Split, images: list[ReidImage], options: Options) -> None:
        """Return None: there are no published sizes."""

    @staticmethod
    def open(image: ReidImage) -> Image.Image:
        """Decode an image in colour; errors are left to the caller."""
        return read_image(image.name)


def find_layout(root: Path) -> str:
    """Return the name of the data set in a folder; without any folder in it ``market1501``, whose errors tell more."""
    for mark, name in MARKS.items():
        if any((place / mark).exists() for place in (root, *(root / home for home in LAYOUTS[name].homes))):
            return name
    return "folder" if root.is_dir() and any(path.is_dir() for path in root.iterdir()) else "market1501"


def is_divided(root: Path) -> bool:
    """Return whether a folder has its own queries and gallery."""
    return any((root / part).is_dir() for part in ("query", "gallery"))


def check_camera(expression: str) -> None:
    """Check the expression for the camera.

    Raises:
        DataError: it is no regular expression with a group.
    """
    try:
        groups = re.compile(expression).groups
    except re.error as error:
        raise DataError(f"--data.camera '{expression}' is no regular expression: {error}") from error
    if not groups:
        raise DataError(f"--data.camera '{expression}' must have the camera in parentheses, such as '_c(\\d+)'")


def _divide(root: Path, split: Split, share: float) -> dict[Split, list[Found]]:
    """Divide identities into those to train on and those to evaluate on, whose images are queries or in the gallery.

    Raises:
        DataError: too few identities, or no image to find.
    """
    if root.is_dir() and not is_undivided(str(root)):
        raise DataError(
            f"{root} has splits of classes: name its folders train, query and gallery, or pass a folder with a folder "
            "for each identity as --data.root"
        )
    by_identity: dict[str, list[Found]] = {}
    for image in _find(root, split == "gallery"):
        by_identity.setdefault(image.identity, []).append(image)
    if len(by_identity) < 2:
        number = f"one identity, {next(iter(by_identity))}" if by_identity else "no images"
        raise DataError(f"{root} has {number}: expected {root}/IDENTITY/*.jpg, with at least two identities")
    held_out = set(sorted(by_identity, key=_hash)[: max(2, round(share * len(by_identity)))])
    if split == "train" and len(by_identity) - len(held_out) < 2:
        raise DataError(
            f"{root} has {len(by_identity)} identities, {len(held_out)} of them to evaluate on (--data.val_share "
            f"{share}): at least two others are needed to train on"
        )
    parts: dict[Split, list[Found]] = {"train": [], "query": [], "gallery": []}
    for identity, images in by_identity.items():
        if identity not in held_out:
            parts["train"] += images
            continue
        query = [min(images, key=lambda image: _hash(f"{image.identity}/{image.name}"))] if len(images) > 1 else []
        parts["query"] += query
        parts["gallery"] += [image for image in images if image not in query]
    if not parts["query"]:
        raise DataError(
            f"nothing to find under {root}: none of the {len(held_out)} identities to evaluate on has two images, a "
            "query and a match"
        )
    return parts


def _find(place: Path, report: bool) -> list[Found]:
    """List the images in a folder of identities; images in deeper folders belong to them.

    Raises:
        DataError: a missing folder, or an image in no identity's folder.
    """
    check_readable(place)
    finder, found = Finder(place), []
    for path, _ in list_folder(finder):
        identity, *below = Path(path).relative_to(place).parts
        if not below:
            raise DataError(f"{path} is in no identity's folder: move it to {place}/IDENTITY, or elsewhere")
        found.append(Found(path, class_name(identity), "/".join(below)))
    if report:
        finder.report()
    return found


def _cameras(images: Sequence[Found], expression: str | None) -> dict[str, int]:
    """Number the cameras of images by their paths.

    Raises:
        DataError: a name without a camera.
    """
    if expression is None:
        return {image.path: number for number, image in enumerate(images)}
    names = {}
    for image in images:
        match = re.search(expression, image.name)
        if match is None or match[1] is None:
            raise DataError(
                f"{image.path} has no camera by --data.camera '{expression}': rename it, or correct the expression"
            )
        names[image.path] = match[1]
    numbers = _number(names.values())
    return {path: numbers[name] for path, name in names.items()}


def _number(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(sorted(set(names), key=natural_key))}


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()
