"""The embedded identities: the same images always and everywhere, of different people by different cameras."""

import random
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionattn.data.drawing.person import Appearance, draw_person
from visionattn.data.reid import identities
from visionattn.data.reid.identities import CAMERAS, Identities, appearance
from visionattn.data.reid.layouts import Options, ReidImage, Split

SPLITS: tuple[Split, ...] = ("train", "query", "gallery")


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    identities._draw.cache_clear()
    yield
    identities._draw.cache_clear()


def listed(split: Split) -> list[ReidImage]:
    return Identities().images(Path(), split, Options())


def test_training_and_test_identities_are_disjoint() -> None:
    people = {split: {image.pid for image in listed(split)} for split in SPLITS}
    assert len(people["train"]) == 64
    assert people["gallery"] == people["query"] | {0}
    assert len(people["query"]) == 48
    assert not people["train"] & people["gallery"]
    names = [image.name for split in SPLITS for image in listed(split)]
    assert len(set(names)) == len(names) == 64 * 4 * 3 + 48 * 4 + 48 * 4 * 2 + 64


@pytest.mark.parametrize("split", SPLITS)
def test_everybody_is_seen_by_all_four_cameras(split: Split) -> None:
    images = listed(split)
    for pid in {image.pid for image in images}:
        assert {image.camera for image in images if image.pid == pid} == {1, 2, 3, 4}


@pytest.mark.parametrize(("split", "checksum"), [("train", 4131846726), ("query", 560841661), ("gallery", 4261118211)])
def test_lists_never_change(split: Split, checksum: int) -> None:
    # Or results would not compare with those of earlier versions.
    lines = [f"{image.name} {image.pid} {image.camera}" for image in listed(split)]
    assert zlib.crc32("\n".join(lines).encode()) == checksum


def test_people_never_change() -> None:
    person = appearance(np.random.default_rng([6, 1]))
    assert (person.build, person.stature) == pytest.approx((1.2012428079, 0.9984590427))
    assert replace(person, build=1.0, stature=1.0) == Appearance(
        skin=(160, 108, 74),
        hair=(150, 146, 142),
        shirt=(28, 28, 34),
        second=(226, 190, 50),
        pattern="bands",
        legs="trousers",
        legwear=(232, 140, 170),
        shoes=(226, 190, 50),
        bag="handbag",
        bag_colour=(90, 160, 220),
        build=1.0,
        stature=1.0,
        long_hair=True,
        long_sleeves=True,
        hat=None,
    )


def test_images_are_the_same_whenever_they_are_drawn() -> None:
    images = [*listed("train")[:4], *listed("gallery")[-4:]]
    first = [Identities().open(image).tobytes() for image in images]
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    identities._draw.cache_clear()
    again = [Identities().open(image).tobytes() for image in reversed(images)]
    assert again[::-1] == first


def test_images_are_all_different() -> None:
    drawn = [Identities().open(image) for image in [*listed("query"), *listed("gallery")[-64:]]]
    assert {(image.mode, image.size) for image in drawn} == {("RGB", (32, 64))}
    assert len({image.tobytes() for image in drawn}) == 192 + 64


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Whom and with which camera images show."""
    seen: list[tuple[Any, ...]] = []

    def draw(person: Any, camera: Any, *args: Any) -> Any:
        seen.append((person, camera))
        return draw_person(person, camera, *args)

    monkeypatch.setattr(identities, "draw_person", draw)
    return seen


def test_somebody_stays_the_same_before_all_cameras(drawn: list[tuple[Any, ...]]) -> None:
    images = [image for split in ("query", "gallery") for image in listed(split) if image.pid == 70]
    for image in images:
        Identities().open(image)
    assert len(drawn) == 12
    assert len({person for person, _ in drawn}) == 1
    assert [camera for _, camera in drawn] == [CAMERAS[image.camera] for image in images]
    assert len({camera for _, camera in drawn}) == 4


def test_everybody_and_every_distractor_looks_different(drawn: list[tuple[Any, ...]]) -> None:
    one_each = {image.pid: image for split in SPLITS for image in listed(split) if image.pid}
    for image in [*one_each.values(), *listed("gallery")[-64:]]:
        Identities().open(image)
    assert len({person for person, _ in drawn}) == 64 + 48 + 64


def test_cameras_differ_by_colour() -> None:
    images: dict[int, list[Any]] = {camera: [] for camera in CAMERAS}
    for image in listed("query"):
        images[image.camera].append(np.asarray(Identities().open(image)).mean((0, 1)))
    means = [np.mean(colours, axis=0) for colours in images.values()]
    for number, mean in enumerate(means):
        for other in means[:number]:
            assert np.abs(mean - other).max() > 10
