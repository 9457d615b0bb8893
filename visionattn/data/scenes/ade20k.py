"""ADE20K with all classes and instances, whose numbers are in the channels of a PNG next to each image."""

import re
from collections.abc import Sequence
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from visionattn.data.errors import DataError
from visionattn.data.finding import Finder
from visionattn.data.scenes.annotation import Label, channels, labelled_scene, open_mask, read_rgb
from visionattn.data.scenes.scene import Scene
from visionattn.data.sources import SPLITS

HOME = "ADE20K_2021_17_01"
EXPECTED = (
    f"ADE20K is expected as {{root}}/{HOME}/images/ADE/{{{{training,validation}}}}/…/NAME.jpg with NAME_seg.png beside "
    "it. Nothing is downloaded: ask for it at ade20k.csail.mit.edu (the scene parsing benchmark has no instances)"
)

COMPANIONS = (".json", ".txt")
"""Suffixes of files that describe the parts and the scene of an image."""

MASK = re.compile(r"_(seg|parts_\d+)\.png$")

NUM_CLASSES = 3688
STUFF = {
    447: "ceiling",
    738: "dirt track",
    838: "earth",
    913: "field",
    976: "floor",
    1125: "grass",
    1240: "hill",
    1393: "lake",
    1401: "land",
    1610: "mountain",
    1788: "path",
    2128: "river",
    2131: "road",
    2212: "sand",
    2264: "sea",
    2377: "sidewalk",
    2420: "sky",
    2454: "snow",
    2978: "wall",
    2994: "water",
    3016: "waterfall",
}
"""ADE20K calls nothing stuff: these have no shape of their own, by its numbers."""


class Ade20k:
    """Zhou et al., "Semantic Understanding of Scenes through the ADE20K Dataset" (arXiv 1608.05442), of 2021.

    Every instance is a segment, and a thing, buildings and trees included, but for the kinds in `STUFF`. Parts of
    objects belong to the object. Class numbers are ADE20K's own less 1, and their names these numbers: the words, which
    `index_ade20k.pkl` has, are not read.

    Args:
        root: The folder of the archive, or any folder between it and the folders of the splits; or
            a folder of such images without splits.
        split: `train`, `validation`, or the name of a folder.

    Raises:
        DataError: The images are missing.
    """

    class_names: Sequence[str] = [str(1 + target) for target in range(NUM_CLASSES)]

    def __init__(self, root: Path, split: str) -> None:
        remedy = EXPECTED.format(root=root)
        if not root.is_dir():
            raise DataError(f"no such data folder: {root} (--data.root). {remedy}")
        folder = _folder(root, split)
        if folder is None:
            raise DataError(f"no {split} split of ADE20K under {root}. {remedy}")
        finder = Finder(folder, companions=COMPANIONS)
        self.files, unmasked = _images(finder)
        finder.report()
        if unmasked:
            rank_zero_warn(
                f"{folder}: passed over images without NAME_seg.png: {len(unmasked):,} (first {unmasked[0]})"
            )
        if not self.files:
            raise DataError(f"no images with NAME_seg.png beside NAME.jpg under {folder}. {remedy}")

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.files[index])

    def parts(self, index: int) -> list[Path]:
        """Return the files of image and mask."""
        return [self.files[index], _mask_of(self.files[index])]

    def __getitem__(self, index: int) -> Scene:
        """Read a scene.

        Raises:
            OSError: The image cannot be read.
            ValueError: Its mask cannot be, or does not fit it.
        """
        path = self.files[index]
        image = read_rgb(path)
        red, green, blue = channels(open_mask(_mask_of(path)))
        # Red counts in tens. Blue tells instances apart, together with the class even where it has a number twice.
        return labelled_scene(image, (red // 10 * 256 + green) * 256 + blue, _label)


def _mask_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_seg.png")


def _label(key: int) -> Label | None:
    number = key // 256
    if number > NUM_CLASSES:
        raise ValueError(f"its mask has class {number}, where ADE20K has {NUM_CLASSES:,}")
    return Label(number - 1, number not in STUFF) if number else None


def _folder(root: Path, split: str) -> Path | None:
    """Return the folder of a split: `root` itself if there are no splits."""
    homes = [root / between for between in (f"{HOME}/images/ADE", "images/ADE", "ADE", "images", "")]
    wanted = SPLITS.get(split, (split,))
    others = {name for names in SPLITS.values() for name in names}
    for home in homes:
        if found := [home / name for name in wanted if (home / name).is_dir()]:
            return found[0]
    is_whole = split in SPLITS and not any((home / name).is_dir() for home in homes for name in others)
    return root if is_whole else None


def _images(finder: Finder) -> tuple[list[Path], list[Path]]:
    """Return the images that have a mask, and those that have none, in the order of their paths.

    Beside an image lies a folder of its name with a mask for each instance, parts that are hidden included: not these.
    """
    masked: list[Path] = []
    unmasked: list[Path] = []
    for place, folders, names in finder.walk():
        images, masks = [Path(place, name) for name in names if not MASK.search(name)], set(names)
        stems = {image.stem for image in images}
        folders[:] = [name for name in folders if name not in stems]
        for image in images:
            (masked if f"{image.stem}_seg.png" in masks else unmasked).append(image)
    return masked, unmasked
