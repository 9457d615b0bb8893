"""The embedded data set: people drawn as four cameras see them, which need no download."""

import functools
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from visionattn.data.drawing.person import Appearance, Camera, Canvas, Colour, draw_person
from visionattn.data.reid.layouts import Options, Protocol, ReidImage, Split

HEIGHT, WIDTH = 64, 32
SEED = 6  # of everything that is drawn

CAMERAS = {
    1: Camera((188, 184, 176), (120, 116, 110), 0.62, (1.0, 1.0, 1.0), 1.0, 1.0, 0.0, 4, 0.9, 0.0, ("front", "right")),
    2: Camera((150, 126, 104), (96, 76, 60), 0.5, (1.1, 0.9, 0.72), 1.1, 0.95, 0.4, 5, 0.85, 0.15, ("back", "left")),
    3: Camera((84, 100, 96), (70, 96, 66), 0.72, (0.78, 0.92, 1.12), 0.9, 0.85, 0.6, 5, 0.78, 0.3, ("front", "left")),
    4: Camera((70, 72, 84), (52, 52, 58), 0.45, (0.8, 0.98, 0.76), 1.2, 1.0, 0.3, 8, 0.88, 0.1, ("back", "right")),
}


class Shots(NamedTuple):
    """People of a split: identities ``first`` to ``last``, images per camera, and distractors."""

    first: int
    last: int
    per_camera: int
    distractors: int = 0


SHOTS: Mapping[Split, Shots] = {
    "train": Shots(1, 64, 3),
    "query": Shots(65, 112, 1),
    "gallery": Shots(65, 112, 2, distractors=64),
}

PALETTE: tuple[Colour, ...] = (
    (28, 28, 34),
    (236, 234, 228),
    (128, 130, 134),
    (196, 36, 40),
    (30, 60, 150),
    (90, 160, 220),
    (40, 120, 60),
    (226, 190, 50),
    (120, 60, 140),
    (140, 92, 50),
    (236, 130, 40),
    (232, 140, 170),
)
"""Colours of clothes: few enough that many people share each."""
SKINS: tuple[Colour, ...] = ((241, 205, 178), (214, 164, 124), (160, 108, 74), (96, 62, 44))
HAIRS: tuple[Colour, ...] = ((30, 24, 22), (84, 54, 34), (170, 120, 60), (150, 146, 142))


class Identities:
    """64 people to train on and 48 others to look for, among 64 distractors; the interface is that of a Layout."""

    title = "identities"
    obtain = ""
    size = (HEIGHT, WIDTH)
    protocol: Protocol = "camera"
    zero_counts = False

    def images(self, root: Path, split: Split, options: Options) -> list[ReidImage]:
        """List the images of a split."""
        first, last, per_camera, distractors = SHOTS[split]
        shots = [(pid, camera, n) for pid in range(first, last + 1) for camera in CAMERAS for n in range(per_camera)]
        shots += [(0, 1 + n % len(CAMERAS), n) for n in range(distractors)]
        return [ReidImage(f"identities/{split}/{pid:04d}_c{camera}_{n:02d}", pid, camera) for pid, camera, n in shots]

    def compare(self, split: Split, images: list[ReidImage], options: Options) -> None:
        """Return None: the drawn images are never other than published."""

    def open(self, image: ReidImage) -> Image.Image:
        """Draw an image, as a function of its name, identity and camera."""
        return Image.fromarray(_draw(image))


@functools.cache  # all of them take 9 MB, and drawing them a fifth of an epoch
def _draw(image: ReidImage) -> Canvas:
    name = zlib.crc32(image.name.encode())
    # Each distractor is somebody else.
    person = appearance(np.random.default_rng([SEED, image.pid] if image.pid else [SEED, 0, name]))
    return draw_person(person, CAMERAS[image.camera], np.random.default_rng([SEED, name]), HEIGHT, WIDTH)


def appearance(rng: np.random.Generator) -> Appearance:
    """Draw the appearance of a person."""

    def one_of(choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    shirt = one_of(PALETTE)
    return Appearance(
        skin=one_of(SKINS),
        hair=one_of(HAIRS),
        shirt=shirt,
        second=one_of([colour for colour in PALETTE if colour != shirt]),
        pattern=one_of(("plain", "bands", "stripes", "halves", "logo")),
        legs=one_of(("trousers", "trousers", "shorts", "skirt")),
        legwear=one_of(PALETTE),
        shoes=one_of(PALETTE),
        bag=one_of(("none", "backpack", "handbag", "sash")),
        bag_colour=one_of(PALETTE),
        build=float(rng.uniform(0.8, 1.25)),
        stature=float(rng.uniform(0.9, 1.05)),
        long_hair=bool(rng.integers(2)),
        long_sleeves=bool(rng.integers(2)),
        hat=one_of(PALETTE) if rng.random() < 0.3 else None,
    )
