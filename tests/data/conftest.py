"""Small folders of images, which the tests of several data sets want."""

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

WriteImages = Callable[..., Path]


@pytest.fixture
def write_images() -> WriteImages:
    """Writes images of one colour, which their name gives, under a folder, which is given back."""

    def write(root: Path, *names: str, size: tuple[int, int] = (8, 16), mode: str = "RGB") -> Path:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            colour = tuple(zlib.crc32(name.encode()).to_bytes(4, "big")[:3])
            Image.new("RGB", size, colour).convert(mode).save(root / name)
        return root

    return write


@pytest.fixture
def market(tmp_path: Path, write_images: WriteImages) -> Path:
    """Market-1501's folders: 4 identities to train on with 5 images each, and 3 others to look for.

    The gallery has two images of each, and one each of nobody (-1) and of somebody else (0).
    """
    train = [f"bounding_box_train/{pid:04d}_c{1 + n % 3}s1_{n:06d}_00.jpg" for pid in (2, 7, 10, 11) for n in range(5)]
    query = [f"query/{pid:04d}_c4s1_000000_00.jpg" for pid in (3, 4, 5)]
    gallery = [f"bounding_box_test/{pid:04d}_c{camera}s2_000000_01.jpg" for pid in (3, 4, 5) for camera in (5, 6)]
    others = ["bounding_box_test/-1_c1s1_000000_00.jpg", "bounding_box_test/0000_c2s1_000000_00.jpg"]
    return write_images(tmp_path / "market", *train, *query, *gallery, *others)
