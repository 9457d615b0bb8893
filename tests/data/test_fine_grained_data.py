"""Birds, cars and aircraft in the files of their publications, and the crop that they are trained on."""

import shutil
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from visionattn.data import DataError, ImageClassificationData, UnreadableImageError
from visionattn.data.fine_grained import FINE_GRAINED

HOMES = {"cub200": "CUB_200_2011", "stanford_cars": "stanford_cars", "fgvc_aircraft": "fgvc-aircraft-2013b"}
CLASSES = {
    "cub200": ["001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird"],
    "stanford_cars": ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"],
    "fgvc_aircraft": ["707-320", "DHC-8-300", "Eurofighter Typhoon"],
}
TRAIN = {
    "cub200": [(f"{folder}/x_{number}.jpg", number) for number, folder in enumerate(CLASSES["cub200"])],
    "stanford_cars": [("00001.jpg", 2), ("00002.jpg", 0), ("00003.jpg", 1)],
    "fgvc_aircraft": [("1025794", 0), ("0056978", 2), ("1340192", 1)],
}
TEST = {
    "cub200": [("001.Black_footed_Albatross/b_2.jpg", 0), ("010.Red_winged_Blackbird/e_5.jpg", 2)],
    "stanford_cars": [("00001.jpg", 1), ("00002.jpg", 2)],
    "fgvc_aircraft": [("1514522", 2), ("0747566", 0)],
}

pytestmark = pytest.mark.filterwarnings("ignore:.*was published with")


def write_cub200(home: Path) -> None:
    # Their numbers are not in the order of the lines, and 10 comes after 9.
    images = {1: TRAIN["cub200"][0], 2: TEST["cub200"][0], 9: TRAIN["cub200"][1], 10: TRAIN["cub200"][2]}
    images[11] = TEST["cub200"][1]
    lines = sorted(images, key=str)
    home.mkdir(parents=True)
    (home / "images.txt").write_text("".join(f"{number} {images[number][0]}\n" for number in lines))
    (home / "classes.txt").write_text("".join(f"{(1, 2, 10)[i]} {name}\n" for i, name in enumerate(CLASSES["cub200"])))
    labels = {number: (1, 2, 10)[label] for number, (_, label) in images.items()}
    (home / "image_class_labels.txt").write_text("".join(f"{number} {labels[number]}\n" for number in lines))
    parts = {number: int(image in TRAIN["cub200"]) for number, image in images.items()}
    (home / "train_test_split.txt").write_text("".join(f"{number} {parts[number]}\n" for number in lines))
    for name, label in images.values():
        save_image(home / "images" / name, label)


def write_stanford_cars(home: Path) -> None:
    (home / "devkit").mkdir(parents=True)
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": np.array(CLASSES["stanford_cars"], dtype=object)})
    kinds = [(f"bbox_{corner}", np.uint16) for corner in ("x1", "y1", "x2", "y2")]
    kinds += [("class", np.uint8), ("fname", object)]  # type: ignore[list-item]
    for files, path, folder in (
        (TRAIN["stanford_cars"], "devkit/cars_train_annos.mat", "cars_train"),
        (TEST["stanford_cars"], "cars_test_annos_withlabels.mat", "cars_test"),
    ):
        rows = [(1, 2, 30, 40, label + 1, name) for name, label in files]
        savemat(home / path, {"annotations": np.array(rows, dtype=kinds)})
        for name, label in files:
            save_image(home / folder / name, label)


def write_fgvc_aircraft(home: Path) -> None:
    (home / "data").mkdir(parents=True)
    names = CLASSES["fgvc_aircraft"]
    (home / "data" / "variants.txt").write_text("".join(f"{name}\n" for name in names))
    for split, files in (("trainval", TRAIN["fgvc_aircraft"]), ("test", TEST["fgvc_aircraft"])):
        lines = "".join(f"{name} {names[label]}\n" for name, label in files)
        (home / "data" / f"images_variant_{split}.txt").write_text(lines)
        for name, label in files:
            save_image(home / "data" / "images" / f"{name}.jpg", label)


def save_image(path: Path, label: int) -> None:
    """As bright as its class says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 18), (40 + 80 * label,) * 3).save(path)


WRITE: dict[str, Callable[[Path], None]] = {
    "cub200": write_cub200,
    "stanford_cars": write_stanford_cars,
    "fgvc_aircraft": write_fgvc_aircraft,
}
every_data_set = pytest.mark.parametrize("name", WRITE)


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Attempts to reach the network, which fail."""
    attempts: list[Any] = []

    def connect(_: Any, address: Any) -> None:
        attempts.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return attempts


def opened(name: str, root: Path | None, **options: Any) -> ImageClassificationData:
    defaults: dict[str, Any] = {"batch_size": 3, "img_size": 16, "num_workers": 0, "seed": 0, "mean": [0.0] * 3}
    defaults |= {"std": [1.0] * 3, "no_aug": True}
    data = ImageClassificationData(name, None if root is None else str(root), **{**defaults, **options})
    data.setup("fit")
    return data


def file_of(path: str) -> str:
    """Its name as the lists of the tests have it."""
    return "/".join(Path(path).parts[-2:]) if "CUB" in path else Path(path).name


@every_data_set
@pytest.mark.parametrize("itself", [False, True], ids=["the folder around it", "the folder itself"])
def test_splits_match_the_lists(tmp_path: Path, name: str, itself: bool) -> None:
    home = tmp_path / HOMES[name]
    WRITE[name](home)
    data = opened(name, home if itself else tmp_path)
    assert data.class_names == CLASSES[name]
    (validation,) = data.val_dataloader()
    (training,) = data.train_dataloader()
    for batch, files in ((training, TRAIN[name]), (validation, TEST[name])):
        expected = {file if "." in file else f"{file}.jpg": label for file, label in files}
        found = dict(zip(map(file_of, batch.name), batch.target.tolist(), strict=True))
        assert found == expected
        brightness = (batch.to("cpu").image.mean((1, 2, 3)) * 255 - 40) / 80
        assert brightness.round().int().tolist() == batch.target.tolist()
    assert [file_of(path).removesuffix(".jpg") for path in validation.name] == [
        file.removesuffix(".jpg") for file, _ in TEST[name]
    ]
    assert data.describe() == f"{name}: 3 train, 2 validation images of 3 classes"


@every_data_set
def test_testing_is_on_the_test_images(tmp_path: Path, name: str) -> None:
    WRITE[name](tmp_path / HOMES[name])
    data = opened(name, tmp_path, limit_per_class=1)
    data.setup("test")
    assert [batch.target.tolist() for batch in data.test_dataloader()] == [[label for _, label in TEST[name]]]


def test_grey_images_come_in_colour(tmp_path: Path) -> None:
    # Some of CUB's are.
    write_cub200(tmp_path / "CUB_200_2011")
    path = tmp_path / "CUB_200_2011" / "images" / TEST["cub200"][0][0]
    Image.new("L", (24, 18), 99).save(path)
    (batch,) = opened("cub200", tmp_path).val_dataloader()
    assert batch.image.shape == (2, 3, 16, 16)


@every_data_set
def test_split_of_another_size_than_published_warns(tmp_path: Path, name: str) -> None:
    WRITE[name](tmp_path / HOMES[name])
    sizes = {
        "cub200": ("5,994 of 200", "5,794 of 200"),
        "stanford_cars": ("8,144 of 196", "8,041 of 196"),
        "fgvc_aircraft": ("6,667 of 100", "3,333 of 100"),
    }[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened(name, tmp_path)
    told = [str(warning.message) for warning in caught if "was published" in str(warning.message)]
    title = FINE_GRAINED[name].title
    assert told == [
        f"{tmp_path / HOMES[name]} has 3 train images of 3 classes, where {title} was published with {sizes[0]}",
        f"{tmp_path / HOMES[name]} has 2 test images of 3 classes, where {title} was published with {sizes[1]}",
    ]


@every_data_set
def test_fine_grained_data_download_nothing(tmp_path: Path, name: str, connections: list[Any]) -> None:
    title = FINE_GRAINED[name].title
    with pytest.raises(DataError, match=rf"no --data.root: {title} is expected in ROOT/{HOMES[name]}, with .*obtain"):
        opened(name, None)
    for download in (False, True):
        with pytest.raises(DataError, match=rf"no such data folder: .*{HOMES[name]}: {title} is expected in .*obtain"):
            opened(name, tmp_path, download=download)
    assert not any(tmp_path.iterdir())
    (tmp_path / HOMES[name]).mkdir()
    with pytest.raises(DataError, match=rf"cannot read train images from .*{HOMES[name]}: .*{title} is expected in"):
        opened(name, tmp_path, download=True)
    assert not any((tmp_path / HOMES[name]).iterdir())
    assert not connections


MISSING = [
    ("cub200", "images.txt"),
    ("cub200", "classes.txt"),
    ("cub200", "image_class_labels.txt"),
    ("cub200", "train_test_split.txt"),
    ("stanford_cars", "devkit"),
    ("stanford_cars", "devkit/cars_meta.mat"),
    ("stanford_cars", "devkit/cars_train_annos.mat"),
    ("stanford_cars", "cars_train"),
    ("stanford_cars", "cars_test_annos_withlabels.mat"),
    ("stanford_cars", "cars_test"),
    ("fgvc_aircraft", "data/images"),
    ("fgvc_aircraft", "data/variants.txt"),
    ("fgvc_aircraft", "data/images_variant_trainval.txt"),
    ("fgvc_aircraft", "data/images_variant_test.txt"),
]


@pytest.mark.parametrize(("name", "missing"), MISSING, ids=[missing for _, missing in MISSING])
def test_missing_file_is_named(tmp_path: Path, name: str, missing: str) -> None:
    WRITE[name](tmp_path / HOMES[name])
    path = tmp_path / HOMES[name] / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=rf"cannot read t\w+ images from .*: there is no .*{missing}\. .* is expected"):
        opened(name, tmp_path)


BAD = [
    ("cub200", "images.txt", "1 a.jpg\n\nx y\n", "line 2 of .*images.txt is not a number and a word: ''"),
    ("cub200", "images.txt", "1 001.A/a.jpg\n7 002.B/b.jpg\n", "7"),
    ("cub200", "train_test_split.txt", "1 1\n2 0\n9 1\n10\n11 0", "line 4 of .*train_test_split.txt is not a number"),
    (
        "cub200",
        "train_test_split.txt",
        "1 1\n2 0\n9 2\n10 1\n11 0",
        "image 9 is for training .1. or testing .0., got '2'",
    ),
    ("cub200", "image_class_labels.txt", "1 1\n2 1\n9 2\n10 99\n11 3\n", "there is no entry for 99"),
    ("cub200", "classes.txt", "1 a\n2 b\n", "there is no entry for 10"),
    (
        "fgvc_aircraft",
        "data/images_variant_trainval.txt",
        "1025794 Zeppelin NT\n",
        "there is no entry for 'Zeppelin NT'",
    ),
    ("fgvc_aircraft", "data/images_variant_trainval.txt", "1025794\n", "unpack"),
    ("fgvc_aircraft", "data/variants.txt", "", "there is no entry for '707-320'"),
]


@pytest.mark.parametrize(("name", "file", "content", "message"), BAD, ids=[f"{file} {m}" for _, file, _, m in BAD])
def test_bad_list_is_named(tmp_path: Path, name: str, file: str, content: str, message: str) -> None:
    WRITE[name](tmp_path / HOMES[name])
    (tmp_path / HOMES[name] / file).write_text(content)
    with pytest.raises(DataError, match=rf"cannot read train images from .*{message}.* is expected in ROOT/"):
        opened(name, tmp_path)


@pytest.mark.parametrize("length", [0, 4, 128, 160, -100])
def test_annotations_of_cars_that_are_cut_short(tmp_path: Path, length: int) -> None:
    write_stanford_cars(tmp_path / "stanford_cars")
    path = tmp_path / "stanford_cars" / "devkit" / "cars_train_annos.mat"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"cannot read train images from .*stanford_cars: .*Stanford Cars is expected"):
        opened("stanford_cars", tmp_path)


def test_annotations_of_something_else(tmp_path: Path) -> None:
    write_stanford_cars(tmp_path / "stanford_cars")
    savemat(tmp_path / "stanford_cars" / "devkit" / "cars_train_annos.mat", {"something": 3})
    with pytest.raises(DataError, match=r"there is no entry for 'annotations'"):
        opened("stanford_cars", tmp_path)


@every_data_set
def test_missing_listed_image_is_named(tmp_path: Path, name: str) -> None:
    WRITE[name](tmp_path / HOMES[name])
    file = TEST[name][1][0]
    (path,) = [
        path
        for path in tmp_path.rglob("*.jpg")
        if str(path.with_suffix("")).endswith(file.removesuffix(".jpg")) and path.parent.name != "cars_train"
    ]
    path.unlink()
    with pytest.raises(UnreadableImageError, match=f"cannot read {path}: .*--data.on_error skip"):
        list(opened(name, tmp_path).val_dataloader())
    data = opened(name, tmp_path, on_error="skip")
    assert sum(len(batch.image) for batch in data.val_dataloader()) == 1
    assert len(data.broken("validation")) == 1


# Rows are as bright as red says, columns as green says, each in steps of 4.
SLOPES = np.stack([*np.mgrid[:20, :30] * 4, np.full((20, 30), 200)], axis=-1).astype(np.uint8)


def crops(root: Path, epochs: int, **options: Any) -> torch.Tensor:
    """Return the training crops of the only image, as bytes [N, 3, H, W]."""
    data = opened("folder", root, no_aug=False, hflip=0.0, color_jitter=0.0, batch_size=1, **options)
    loader = data.train_dataloader()
    images = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        images += [batch.to("cpu").image for batch in loader]
    return (torch.cat(images) * 255).round()


@pytest.fixture
def slopes(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / "slopes" / split / "a").mkdir(parents=True)
        Image.fromarray(SLOPES).save(tmp_path / "slopes" / split / "a" / "0.png")
    return tmp_path / "slopes"


def test_crops_are_of_the_image_with_its_shorter_edge_as_long_as_wanted(slopes: Path) -> None:
    # 20×30 pixels already have a shorter edge of 20.
    images = crops(slopes, 150, img_size=16, crop_from=20)
    assert images.shape == (150, 3, 16, 16)
    whole = torch.from_numpy(SLOPES).permute(2, 0, 1)
    places = set()
    for image in images:
        top, left = (int(image[axis, 0, 0]) // 4 for axis in (0, 1))
        assert torch.equal(image, whole[:, top : top + 16, left : left + 16])
        places.add((top, left))
    assert {top for top, _ in places} == set(range(5))
    assert {left for _, left in places} == set(range(15))


@pytest.mark.parametrize(("edge", "scale"), [(40, 2), (80, 4), (32, 1.6)])
def test_images_are_enlarged_without_a_change_of_their_proportions(slopes: Path, edge: int, scale: float) -> None:
    # A slope of 4 grey levels per pixel becomes gentler, alike in both directions.
    for image in crops(slopes, 5, img_size=16, crop_from=edge):
        steps = [(image[0, -1] - image[0, 0]).mean() / 15, (image[1, :, -1] - image[1, :, 0]).mean() / 15]
        assert steps == pytest.approx([4 / scale, 4 / scale], abs=0.15)


def test_crop_from_combines_with_crop_padding(slopes: Path) -> None:
    images = crops(slopes, 60, img_size=16, crop_from=20, crop_padding=6)
    mirrored = sum(bool((image[1, 0].diff() == 0).any()) for image in images)  # two columns alike: the edge
    assert 0 < mirrored < 60
    assert images.shape[1:] == (3, 16, 16)


def test_validation_does_not_crop_at_random(slopes: Path) -> None:
    plain, cropped = (
        next(iter(opened("folder", slopes, no_aug=False, crop_from=edge).val_dataloader())).image for edge in (None, 20)
    )
    assert torch.equal(plain, cropped)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"crop_from": 12}, 16), ({"crop_from": 20, "no_aug": True}, 16), ({"crop_from": 100, "img_size": None}, 224)],
    ids=["smaller than the crop", "without augmentation", "smaller than the default"],
)
def test_impossible_crops_are_refused(slopes: Path, options: dict[str, Any], size: int) -> None:
    with pytest.raises(DataError, match=rf"crop_from \d+ must be at least --data.img_size {size}, .*no_aug"):
        opened("folder", slopes, **{"no_aug": False, **options})
