"""Small copies of torchvision's data sets in the layouts that torchvision reads; each function writes one to a root."""

import bz2
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from tests.conftest import write_idx

RNG = np.random.default_rng(0)
KINDS = ("ash", "birch", "cedar")


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def draw(path: Path, size: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(size, size, 3)).save(path)


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def caltech101(root: Path) -> None:
    for kind in (*KINDS, "BACKGROUND_Google"):
        for number in (1, 2, 3):
            draw(root / f"caltech101/101_ObjectCategories/{kind}/image_{number:04d}.jpg")


def caltech256(root: Path) -> None:
    for label, kind in enumerate(KINDS, start=1):
        for number in (1, 2, 3):
            draw(root / f"caltech256/256_ObjectCategories/{label:03d}.{kind}/{label:03d}_{number:04d}.jpg")


def clevr(root: Path) -> None:
    place = root / "clevr/CLEVR_v1.0"
    for split in ("train", "val"):
        names = [f"CLEVR_{split}_{number:06d}.png" for number in range(3)]
        for name in names:
            draw(place / "images" / split / name)
        scenes = [{"image_filename": name, "objects": [{}] * (3 + n)} for n, name in enumerate(names)]
        write_text(place / f"scenes/CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes}))


def country211(root: Path) -> None:
    for split in ("train", "valid", "test"):
        for kind in KINDS:
            draw(root / f"country211/{split}/{kind}/0.jpg")


def dtd(root: Path) -> None:
    for kind in KINDS:
        for number in range(6):
            draw(root / f"dtd/dtd/images/{kind}/{kind}_{number:04d}.jpg")
    for partition in (1, 2):
        for place, split in enumerate(("train", "val", "test")):
            numbers = ((place + partition) % 3, 3 + (place + partition) % 3)
            lines = [f"{kind}/{kind}_{number:04d}.jpg" for kind in KINDS for number in numbers]
            write_text(root / f"dtd/dtd/labels/{split}{partition}.txt", *lines)


def emnist(root: Path) -> None:
    (root / "EMNIST/raw").mkdir(parents=True)
    for variant, count in (("balanced", 47), ("letters", 27)):
        for part in ("train", "test"):
            stem = root / f"EMNIST/raw/emnist-{variant}-{part}"
            write_idx(Path(f"{stem}-images-idx3-ubyte"), noise(count, 28, 28))
            write_idx(Path(f"{stem}-labels-idx1-ubyte"), np.arange(count))


def eurosat(root: Path) -> None:
    for kind in KINDS:
        for number in range(3):
            draw(root / f"eurosat/2750/{kind}/{kind}_{number}.jpg")


def fer2013(root: Path) -> None:
    (root / "fer2013").mkdir(parents=True)
    with (root / "fer2013/icml_face_data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["emotion", " Usage", " pixels"])
        for number in range(21):
            use = ("Training", "PublicTest", "PrivateTest")[number % 3]
            rows.writerow([number % 7, use, " ".join(map(str, noise(48 * 48)))])


def fgvc_aircraft(root: Path) -> None:
    place = root / "fgvc-aircraft-2013b/data"
    for level, names in (("variants", KINDS), ("families", KINDS[:2]), ("manufacturers", KINDS[:2])):
        write_text(place / f"{level}.txt", *names)
    for split in ("train", "val", "trainval", "test"):
        lines = [f"{split}{number} {kind}" for number, kind in enumerate(KINDS)]
        write_text(place / f"images_variant_{split}.txt", *lines)
        write_text(place / f"images_family_{split}.txt", *lines[:2])
        for number in range(3):
            draw(place / f"images/{split}{number}.jpg")


def flowers102(root: Path) -> None:
    place = root / "flowers-102"
    for number in range(1, 10):
        draw(place / f"jpg/image_{number:05d}.jpg")
    savemat(place / "imagelabels.mat", {"labels": np.arange(9) % 102 + 1})
    savemat(place / "setid.mat", {"trnid": np.arange(1, 4), "valid": np.arange(4, 7), "tstid": np.arange(7, 10)})


def food101(root: Path) -> None:
    for split in ("train", "test"):
        files = {kind: [f"{kind}/{split}{number}" for number in range(2)] for kind in KINDS}
        write_text(root / f"food-101/meta/{split}.json", json.dumps(files))
        for names in files.values():
            for name in names:
                draw(root / f"food-101/images/{name}.jpg")


def gtsrb(root: Path) -> None:
    place = root / "gtsrb"
    for label in range(3):
        draw(place / f"GTSRB/Training/{label:05d}/00000_00000.ppm")
        draw(place / f"GTSRB/Final_Test/Images/{label:05d}.ppm")
    lines = [f"{label:05d}.ppm;{label}" for label in range(3)]
    write_text(place / "GT-final_test.csv", "Filename;ClassId", *lines)


def imagenet(root: Path) -> None:
    words = {"n02012849": ("crane",), "n01440764": ("tench", "Tinca tinca"), "n03126707": ("crane",)}
    for split in ("train", "val"):
        for wnid in words:
            for number in range(2):
                draw(root / split / wnid / f"{number}.JPEG")
    torch.save((words, []), root / "meta.bin")


def imagenette(root: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040", "n03000684"):
            draw(root / f"imagenette2-160/{split}/{wnid}/{wnid}_1.jpeg")


def pcam(root: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (root / "pcam").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        stem = root / f"pcam/camelyonpatch_level_2_split_{split}"
        for key, values in (("x", noise(4, 96, 96, 3)), ("y", np.arange(4).reshape(4, 1, 1, 1) % 2)):
            with h5py.File(f"{stem}_{key}.h5", "w") as file:
                file[key] = values


def pets(root: Path) -> None:
    for split, first in (("trainval", 1), ("test", 5)):
        lines = [
            f"{breed}_{first + number} {label} {species} 1"
            for label, (breed, species) in enumerate((("Bengal", 1), ("great_pyrenees", 2)), start=1)
            for number in range(2)
        ]
        write_text(root / f"oxford-iiit-pet/annotations/{split}.txt", *lines)
        for line in lines:
            draw(root / f"oxford-iiit-pet/images/{line.split()[0]}.jpg")


def places365(root: Path) -> None:
    places = [f"/{place[0]}/{place}" for place in KINDS]
    write_text(root / "categories_places365.txt", *(f"{place} {label}" for label, place in enumerate(places)))
    for split, folder in (("train_standard", "data_256_standard"), ("val", "val_256")):
        names = [f"{place}/{number}.jpg" for place in places for number in range(2)]
        write_text(root / f"places365_{split}.txt", *(f"{name} {n // 2}" for n, name in enumerate(names)))
        for name in names:
            draw(root / f"{folder}{name}")


def rendered_sst2(root: Path) -> None:
    for split in ("train", "valid", "test"):
        for kind in ("negative", "positive"):
            draw(root / f"rendered-sst2/{split}/{kind}/0.png")


def semeion(root: Path) -> None:
    bits, labels = RNG.integers(0, 2, (30, 256)), np.eye(10, dtype=int)[np.arange(30) % 10]
    np.savetxt(root / "semeion.data", np.hstack([bits, labels]), fmt="%d")


def stanford_cars(root: Path) -> None:
    place = root / "stanford_cars"
    (place / "devkit").mkdir(parents=True)
    savemat(place / "devkit/cars_meta.mat", {"class_names": np.array(KINDS, dtype=object)})
    kind = [("fname", object), ("class", object)]
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(f"{number:05d}.jpg", 1 + number % 3) for number in range(4)]
        savemat(place / file, {"annotations": np.array(rows, dtype=kind)})
        for name, _ in rows:
            draw(place / f"cars_{split}/{name}")


def stl10(root: Path) -> None:
    place = root / "stl10_binary"
    place.mkdir(parents=True)
    for split in ("train", "test"):
        noise(20, 3, 96, 96).tofile(place / f"{split}_X.bin")
        (np.arange(20, dtype=np.uint8) % 10 + 1).tofile(place / f"{split}_y.bin")
    write_text(place / "class_names.txt", *(f"thing {number}" for number in range(10)))


def sun397(root: Path) -> None:
    write_text(root / "SUN397/ClassName.txt", "/a/abbey", "/a/apse/indoor", "/b/bar")
    for place in ("a/abbey", "a/apse/indoor", "b/bar"):
        for number in range(5):
            draw(root / f"SUN397/{place}/sun_{RNG.integers(10**6)}{number}.jpg")


def svhn(root: Path) -> None:
    for split in ("train", "test"):
        savemat(root / f"{split}_32x32.mat", {"X": noise(32, 32, 3, 20), "y": np.arange(20)[:, None] % 10 + 1})


def usps(root: Path) -> None:
    for file in ("usps.bz2", "usps.t.bz2"):
        values = RNG.uniform(-1, 1, (20, 256))
        lines = [
            f"{label % 10 + 1} " + " ".join(f"{index}:{value:.3f}" for index, value in enumerate(row, start=1))
            for label, row in enumerate(values)
        ]
        (root / file).write_bytes(bz2.compress("\n".join(lines).encode()))


def inaturalist(root: Path) -> None:
    for version in ("2021_train", "2021_valid"):
        for number, species in enumerate(("Quercus_robur", "Quercus_rubra", "Betula_nana")):
            for image in range(2):
                draw(root / version / f"{number:05d}_Plantae_Tracheophyta_M_Fagales_F_{species}" / f"{image}.jpg")
