"""Layouts of data sets for re-identification, as their publications describe them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from visionattn.data import DataError
from visionattn.data.reid.layouts import LAYOUTS, Options, ReidImage, Split

MARKET = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
VERI = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
NAMES = {
    "market1501": ("0002_c1s1_000451_03.jpg", "0007_c3s3_077419_03.jpg", "1501_c6s3_086567_01.jpg"),
    "dukemtmc": ("0001_c2_f0046182.jpg", "0005_c8_f0046985.jpg", "7140_c1_f0082446.jpg"),
    "occluded-duke": ("0001_c2_f0046302.jpg", "0005_c8_f0046985.jpg", "7140_c5_f0082446.jpg"),
    "veri776": ("0001_c001_00016450_0.jpg", "0002_c020_00016455_0.jpg", "0776_c012_00068570_0.jpg"),
}
EXPECTED = {
    "market1501": [(2, 1), (7, 3), (1501, 6)],
    "dukemtmc": [(1, 2), (5, 8), (7140, 1)],
    "occluded-duke": [(1, 2), (5, 8), (7140, 5)],
    "veri776": [(1, 1), (2, 20), (776, 12)],
}
HOMES = {
    "market1501": "Market-1501-v15.09.15",
    "dukemtmc": "DukeMTMC-reID",
    "occluded-duke": "Occluded_Duke",
    "veri776": "VeRi",
}
SPLITS: tuple[Split, ...] = ("train", "query", "gallery")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(name: str, root: Path, split: Split, **options: object) -> list[ReidImage]:
    return LAYOUTS[name].images(root, split, Options(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("nested", [False, True], ids=["the folder", "the folder that it was unpacked in"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_names_say_who_and_where(tmp_path: Path, name: str, split: Split, nested: bool) -> None:
    home = tmp_path / HOMES[name] if nested else tmp_path
    folder = (VERI if name == "veri776" else MARKET)[split]
    touch(home / folder, *NAMES[name])
    found = listed(name, tmp_path, split)
    assert [(image.pid, image.camera) for image in found] == EXPECTED[name]
    assert [image.name for image in found] == [str(home / folder / file) for file in NAMES[name]]


def test_images_of_no_identity_are_dropped_and_distractors_kept(tmp_path: Path) -> None:
    touch(tmp_path / "bounding_box_test", "-1_c1s1_000401_00.jpg", "0000_c3s1_000151_01.jpg", "0003_c2s1_000151_01.jpg")
    assert [image[1:3] for image in listed("market1501", tmp_path, "gallery")] == [(0, 3), (3, 2)]


def test_images_come_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "query", *NAMES["market1501"])
    original = Path.iterdir

    def backwards(folder: Path) -> Iterator[Path]:
        return iter(sorted(original(folder), reverse=True))

    monkeypatch.setattr(Path, "iterdir", backwards)
    assert [Path(image.name).name for image in listed("market1501", tmp_path, "query")] == [*NAMES["market1501"]]


def test_files_that_are_not_images_are_skipped(tmp_path: Path) -> None:
    # Market-1501's archive holds Thumbs.db; macOS adds ._ files.
    touch(tmp_path / "query", "0002_c1s1_000451_03.JPG", "Thumbs.db", "._0002_c1s1_000451_03.jpg", "readme.txt")
    says = (
        r"passed over hidden or system files and folders: 2 \(.*\); files that are not images Pillow reads: 1 \(.txt\)"
    )
    with pytest.warns(UserWarning, match=says):
        assert [image[1:3] for image in listed("market1501", tmp_path, "query")] == [(2, 1)]


def test_images_of_every_format_are_listed(tmp_path: Path) -> None:
    names = [f"000{n}_c1s1_000451_03{suffix}" for n, suffix in enumerate((".bmp", ".jfif", ".jpe", ".png", ".webp"))]
    touch(tmp_path / "query", *names)
    assert [Path(image.name).name for image in listed("market1501", tmp_path, "query")] == names


MSMT17 = {
    "train": "0000/0000_000_01_0303morning_0008_0.jpg 0\n0012/0012_003_15_0113noon_1008_1.jpg 12\n",
    "val": "0000/0000_001_04_0303morning_0015_0.jpg 0\n",
    "query": "0000/0000_002_02_0303morning_0021_0.jpg 0\n",
    "gallery": "0000/0000_004_11_0303morning_0021_0.jpg 0\n0001/0001_005_14_0303noon_0021_0.jpg 1\n\n",
}


def write_msmt17(home: Path, version: int) -> Path:
    folders = {1: ("train", "test"), 2: ("mask_train_v2", "mask_test_v2")}[version]
    for folder in folders:
        (home / folder).mkdir(parents=True)
    for name, content in MSMT17.items():
        (home / f"list_{name}.txt").write_text(content)
    return home


@pytest.mark.parametrize("home", ["", "MSMT17_V1", "MSMT17_V2", "MSMT17"])
@pytest.mark.parametrize("version", [1, 2])
def test_msmt17_has_lists(tmp_path: Path, version: int, home: str) -> None:
    place = write_msmt17(tmp_path / home, version)
    train, test = ("train", "test") if version == 1 else ("mask_train_v2", "mask_test_v2")
    own = [
        ReidImage(str(place / train / "0000/0000_000_01_0303morning_0008_0.jpg"), 0, 1),
        ReidImage(str(place / train / "0012/0012_003_15_0113noon_1008_1.jpg"), 12, 15),
    ]
    assert listed("msmt17", tmp_path, "train") == own
    validation = ReidImage(str(place / train / "0000/0000_001_04_0303morning_0015_0.jpg"), 0, 4)
    assert listed("msmt17", tmp_path, "train", train_val=True) == [*own, validation]
    query = [ReidImage(str(place / test / "0000/0000_002_02_0303morning_0021_0.jpg"), 0, 2)]
    for train_val in (False, True):
        assert listed("msmt17", tmp_path, "query", train_val=train_val) == query
    assert [image[1:3] for image in listed("msmt17", tmp_path, "gallery")] == [(0, 11), (1, 14)]


def write_vehicleid(home: Path) -> Path:
    (home / "image").mkdir(parents=True)
    (home / "train_test_split").mkdir()
    for name, content in {
        "train_list": "0000003 13251\n0000001 7\n",
        "test_list_800": "0176300 1\n0176301 2\n",
        "test_list_1600": "0176300 1\n",
        "test_list_2400": "0176302 9\n",
    }.items():
        (home / "train_test_split" / f"{name}.txt").write_text(content)
    return home


@pytest.mark.parametrize("home", ["", "VehicleID", "VehicleID_V1.0"])
def test_vehicleid_has_lists_and_no_queries(tmp_path: Path, home: str) -> None:
    images = write_vehicleid(tmp_path / home) / "image"
    assert [image[:2] for image in listed("vehicleid", tmp_path, "train")] == [
        (str(images / "0000003.jpg"), 13251),
        (str(images / "0000001.jpg"), 7),
    ]
    assert listed("vehicleid", tmp_path, "query") == []
    for size, ids in ((800, [1, 2]), (1600, [1]), (2400, [9])):
        assert [image.pid for image in listed("vehicleid", tmp_path, "gallery", gallery_size=size)] == ids


def test_images_are_opened_in_colour(tmp_path: Path, write_images) -> None:  # type: ignore[no-untyped-def]
    write_images(tmp_path, "query/0002_c1s1_000451_03.jpg", mode="L")
    (image,) = listed("market1501", tmp_path, "query")
    opened = LAYOUTS["market1501"].open(image)
    assert (opened.mode, opened.size) == ("RGB", (8, 16))


ABSENT = [
    ("market1501", "train", "Market-1501: no bounding_box_train in .*, nor in Market-1501-v15.09.15.*ICCV 2015"),
    ("market1501", "query", "Market-1501: no query in .*Nothing is downloaded"),
    ("dukemtmc", "gallery", "DukeMTMC-reID: no bounding_box_test in .*withdrawn"),
    ("occluded-duke", "train", "Occluded-Duke: no bounding_box_train in .*withdrawn"),
    ("msmt17", "gallery", "MSMT17: no list_gallery.txt in .*, nor in MSMT17 or MSMT17_V1 or MSMT17_V2.*CVPR 2018"),
    ("veri776", "train", "VeRi-776: no image_train in .*, nor in VeRi.*PROVID"),
    ("vehicleid", "train", "VehicleID: no train_test_split/train_list.txt in .*CVPR 2016"),
    ("vehicleid", "gallery", "VehicleID: no train_test_split/test_list_800.txt in .*--data.root"),
]


@pytest.mark.parametrize(("name", "split", "message"), ABSENT, ids=[f"{name} {split}" for name, split, _ in ABSENT])
def test_missing_data_are_named(tmp_path: Path, name: str, split: Split, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(name, tmp_path, split)
    with pytest.raises(DataError, match=r"no such data folder: .*nowhere \(--data.root, where .* is\)"):
        listed(name, tmp_path / "nowhere", split)


def test_images_of_lists_have_their_folder(tmp_path: Path) -> None:
    write_msmt17(tmp_path / "1", 1).joinpath("train").rmdir()
    with pytest.raises(DataError, match="MSMT17: no train or mask_train_v2 in"):
        listed("msmt17", tmp_path / "1", "train")
    (tmp_path / "1" / "list_val.txt").unlink()
    with pytest.raises(DataError, match=r"MSMT17: no list_val.txt in"):
        listed("msmt17", tmp_path / "1", "train", train_val=True)
    write_vehicleid(tmp_path / "2").joinpath("image").rmdir()
    with pytest.raises(DataError, match="VehicleID: no image in"):
        listed("vehicleid", tmp_path / "2", "gallery")


@pytest.mark.parametrize("files", [[], ["-1_c1s1_000401_00.jpg", "Thumbs.db"]], ids=["empty", "nobody"])
def test_folder_without_images_is_named(tmp_path: Path, files: list[str]) -> None:
    touch(tmp_path, "query/0002_c1s1_000451_03.jpg")
    (tmp_path / "bounding_box_test").mkdir()
    touch(tmp_path / "bounding_box_test", *files)
    with pytest.raises(DataError, match=r"Market-1501: no gallery images in .*Nothing is downloaded"):
        listed("market1501", tmp_path, "gallery")


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "query")
    with pytest.raises(DataError, match="Market-1501: no query in"):
        listed("market1501", tmp_path, "query")


def test_two_copies_are_refused(tmp_path: Path) -> None:
    write_msmt17(tmp_path / "MSMT17_V1", 1)
    write_msmt17(tmp_path / "MSMT17_V2", 2)
    with pytest.raises(DataError, match=r"both .*MSMT17_V1.* and .*MSMT17_V2.* are there: pass one of"):
        listed("msmt17", tmp_path, "train")


@pytest.mark.parametrize("file", ["holiday.jpg", "0002.jpg", "c1_0002.jpg", "x0002_c1s1_000451_03.jpg"])
def test_badly_named_image_is_named(tmp_path: Path, file: str) -> None:
    touch(tmp_path / "query", "0002_c1s1_000451_03.jpg", file)
    with pytest.raises(DataError, match=rf"query/{file} is not named PID_cCAMERA.*rename or remove it"):
        listed("market1501", tmp_path, "query")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0000/0000_000_01_0303morning_0008_0.jpg", "list_train.txt, line 2: expected IMAGE IDENTITY, got '0000/"),
        ("0000/0000_000_01_0303morning_0008_0.jpg zero", "list_train.txt, line 2: expected IMAGE IDENTITY, got"),
        ("0000/0000_000_01_0303morning_0008_0.jpg ²", "list_train.txt, line 2: expected IMAGE IDENTITY, got"),
        ("0000/0000_000_x_0303morning_0008_0.jpg 0", "list_train.txt: the third .* is the camera, which 0000/.* lacks"),
        ("0000/0000.jpg 0", "list_train.txt: the third .* is the camera, which 0000/0000.jpg lacks"),
    ],
    ids=["no identity", "a word", "a power", "no camera", "few fields"],
)
def test_bad_line_of_a_list_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_msmt17(tmp_path, 1)
    path = tmp_path / "list_train.txt"
    path.write_text(path.read_text().splitlines()[0] + f"\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        listed("msmt17", tmp_path, "train")


def test_binary_list_is_named(tmp_path: Path) -> None:
    path = write_vehicleid(tmp_path) / "train_test_split" / "train_list.txt"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(DataError, match=r"train_list.txt is not text"):
        listed("vehicleid", tmp_path, "train")


PUBLISHED = [
    ("market1501", "train", 12936, 751),
    ("market1501", "query", 3368, 750),
    ("market1501", "gallery", 15913, None),
    ("dukemtmc", "train", 16522, 702),
    ("dukemtmc", "query", 2228, 702),
    ("dukemtmc", "gallery", 17661, None),
    ("occluded-duke", "train", 15618, 702),
    ("occluded-duke", "query", 2210, None),
    ("occluded-duke", "gallery", 17661, None),
    ("msmt17", "query", 11659, 3060),
    ("msmt17", "gallery", 82161, 3060),
    ("veri776", "train", 37778, 576),
    ("veri776", "query", 1678, 200),
    ("veri776", "gallery", 11579, 200),
    ("vehicleid", "train", None, 13164),
]


@pytest.mark.parametrize(
    ("name", "split", "images", "identities"), PUBLISHED, ids=[f"{name} {split}" for name, split, *_ in PUBLISHED]
)
def test_sizes_are_the_published_ones(name: str, split: Split, images: int | None, identities: int | None) -> None:
    layout = LAYOUTS[name]
    first = 0 if layout.zero_counts else 1  # MSMT17's identities are numbered from 0
    people = identities or 100
    whole = [ReidImage("", first + n % people, 1) for n in range(images or people)]
    assert layout.compare(split, whole, Options()) is None
    told = layout.compare(split, whole[: (people if identities else len(whole)) - 1], Options())
    assert told is not None
    for number in (images, identities):
        assert number is None or f"{number:,}" in told.partition("published")[2]


def test_sizes_that_depend_on_options() -> None:
    msmt17, vehicleid = LAYOUTS["msmt17"], LAYOUTS["vehicleid"]
    whole = [ReidImage("", n % 1041, 1) for n in range(32621)]
    assert msmt17.compare("train", whole, Options(train_val=True)) is None
    assert msmt17.compare("train", whole, Options()) == (
        "train has 32,621 images of 1,041 identities (published: 30,248 images of 1,041 identities)"
    )
    assert msmt17.compare("train", whole[:30248], Options()) is None
    for size in (800, 1600, 2400):
        distractors = [ReidImage("", 1 + n, 0) for n in range(size)]
        assert vehicleid.compare("gallery", distractors, Options(False, size)) is None
    assert vehicleid.compare("query", [], Options()) is None


def test_distractors_are_no_identity() -> None:
    images = [ReidImage("", 1 + n % 750, 1) for n in range(3368)]
    assert LAYOUTS["market1501"].compare("query", [*images[:-1], ReidImage("", 0, 1)], Options()) is None
