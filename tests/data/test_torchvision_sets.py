"""torchvision's data sets by name, on small copies in the layouts that torchvision reads."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from tests.data import torchvision_copies as copies
from visionattn.cli import evaluate, train
from visionattn.cli.errors import run
from visionattn.data import DataError, ImageClassificationData
from visionattn.data.file_sources import FileSource
from visionattn.data.torchvision_sets import TORCHVISION, open_torchvision

OURS = ("train", "validation", "test")


class Case(NamedTuple):
    """A data set here, and what torchvision calls it and its splits."""

    name: str
    write: Callable[[Path], None]
    dataset: type
    splits: str = ""
    argument: str = "split"
    options: dict[str, Any] = {}  # noqa: RUF012  is never changed

    def theirs(self, root: Path, split: str) -> Any:
        """Open a split with torchvision."""
        words: dict[str, Any] = dict(zip(OURS, self.splits.split(), strict=True)) if self.splits else {}
        given = {self.argument: words[split] == "train" if self.argument == "train" else words[split]} if words else {}
        return self.dataset(str(root), **given, **self.options)


CASES = [
    Case("caltech101", copies.caltech101, datasets.Caltech101),
    Case("caltech256", copies.caltech256, datasets.Caltech256),
    Case("clevr", copies.clevr, datasets.CLEVRClassification, "train val val"),
    Case("country211", copies.country211, datasets.Country211, "train valid test"),
    Case("dtd", copies.dtd, datasets.DTD, "train val test"),
    Case("dtd/2", copies.dtd, datasets.DTD, "train val test", options={"partition": 2}),
    Case("emnist", copies.emnist, datasets.EMNIST, "train test test", "train", {"split": "balanced"}),
    Case("emnist/letters", copies.emnist, datasets.EMNIST, "train test test", "train", {"split": "letters"}),
    Case("eurosat", copies.eurosat, datasets.EuroSAT),
    Case("fer2013", copies.fer2013, datasets.FER2013, "train test test"),
    Case("fgvc_aircraft", copies.fgvc_aircraft, datasets.FGVCAircraft, "train val test"),
    Case(
        "fgvc_aircraft/family",
        copies.fgvc_aircraft,
        datasets.FGVCAircraft,
        "train val test",
        options={"annotation_level": "family"},
    ),
    Case("flowers102", copies.flowers102, datasets.Flowers102, "train val test"),
    Case("food101", copies.food101, datasets.Food101, "train test test"),
    Case("gtsrb", copies.gtsrb, datasets.GTSRB, "train test test"),
    Case("imagenet", copies.imagenet, datasets.ImageNet, "train val val"),
    Case("imagenette/160px", copies.imagenette, datasets.Imagenette, "train val val", options={"size": "160px"}),
    Case("inaturalist", copies.inaturalist, datasets.INaturalist, "2021_train 2021_valid 2021_valid", "version"),
    Case(
        "inaturalist/genus",
        copies.inaturalist,
        datasets.INaturalist,
        "2021_train 2021_valid 2021_valid",
        "version",
        {"target_type": "genus"},
    ),
    Case("pcam", copies.pcam, datasets.PCAM, "train val test"),
    Case("pets", copies.pets, datasets.OxfordIIITPet, "trainval test test"),
    Case(
        "pets/binary",
        copies.pets,
        datasets.OxfordIIITPet,
        "trainval test test",
        options={"target_types": "binary-category"},
    ),
    Case(
        "places365/small",
        copies.places365,
        datasets.Places365,
        "train-standard val val",
        options={"small": True},
    ),
    Case("rendered_sst2", copies.rendered_sst2, datasets.RenderedSST2, "train val test"),
    Case("semeion", copies.semeion, datasets.SEMEION, options={"download": False}),
    Case("stanford_cars", copies.stanford_cars, datasets.StanfordCars, "train test test"),
    Case("stl10", copies.stl10, datasets.STL10, "train test test"),
    Case("sun397", copies.sun397, datasets.SUN397),
    Case("svhn", copies.svhn, datasets.SVHN, "train test test"),
    Case("usps", copies.usps, datasets.USPS, "train test test", "train"),
]
WHOLE = [case for case in CASES if not case.splits]
by_name = {"ids": lambda case: case.name}


NUMBERS = ("clevr", "gtsrb", "semeion", "svhn", "usps")
CHECKED = (datasets.flowers102, datasets.fer2013, datasets.places365, datasets.semeion, datasets.stl10, datasets.svhn)


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take files whose checksums are not those of the real ones."""
    for module in CHECKED:
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
    monkeypatch.setattr(
        datasets.STL10, "_check_integrity", lambda dataset: (Path(dataset.root) / "stl10_binary").is_dir()
    )


def fitted(root: Path, name: str, **options: Any) -> ImageClassificationData:
    data = ImageClassificationData(
        name=f"torch/{name}", root=str(root), img_size=8, batch_size=4, num_workers=0, seed=0, **options
    )
    data.setup("fit")
    return data


@pytest.mark.parametrize("case", CASES, **by_name)
def test_images_and_labels_are_those_of_torchvision(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.write(tmp_path)
    for split in OURS if case.splits else OURS[:1]:
        theirs = case.theirs(tmp_path, split)
        expected = [(np.asarray(image.convert("RGB")).tobytes(), target) for image, target in theirs]
        with monkeypatch.context() as patched:
            patched.setattr(Image, "open", None)  # nothing is decoded before it is read
            source = open_torchvision(f"torch/{case.name}", str(tmp_path), split, "RGB", undivided=True)
            targets, names = source.targets(), [source.name_of(index) for index in range(len(source))]
        read = [source.read(index) for index in range(len(source))]
        found = [(np.asarray(image).tobytes(), target) for image, target in read]
        assert sorted(found) == sorted(expected), split
        assert len(set(names)) == len(found) > 1
        assert targets == [target for _, target in read]
        assert {type(target) for target in targets} == {int}
        if isinstance(source, FileSource):
            assert names == sorted(names)
            assert all(Path(name).is_file() for name in names)
        else:
            assert found == expected
        assert source.class_to_idx is not None
        assert list(source.class_to_idx.values()) == list(range(len(source.class_to_idx)))
        assert max(targets) < len(source.class_to_idx)
        if case.name in NUMBERS:
            assert list(source.class_to_idx)[:3] == ["0", "1", "2"]
        else:
            assert not any(name.isdecimal() for name in list(source.class_to_idx)[10:])


def test_class_names_are_those_that_people_read(tmp_path: Path) -> None:
    def names(write: Callable[[Path], None], name: str) -> list[str]:
        root = tmp_path / name
        root.mkdir(parents=True)
        write(root)
        return list(open_torchvision(f"torch/{name}", str(root), "train", "RGB", undivided=True).class_to_idx or ())

    assert names(copies.pets, "pets") == ["Bengal", "Great Pyrenees"]
    assert names(copies.pets, "pets/binary") == ["Cat", "Dog"]
    assert names(copies.caltech101, "caltech101") == ["ash", "birch", "cedar"]
    assert names(copies.flowers102, "flowers102")[:2] == ["pink primrose", "hard-leaved pocket orchid"]
    assert names(copies.sun397, "sun397") == ["abbey", "apse/indoor", "bar"]
    assert names(copies.fer2013, "fer2013")[3] == "happy"
    assert names(copies.imagenette, "imagenette/160px")[1] == "English springer, English springer spaniel"
    assert names(copies.inaturalist, "inaturalist/genus") == ["Quercus", "Betula"]
    assert names(copies.imagenet, "imagenet") == ["tench, Tinca tinca", "crane (1)", "crane (2)"]


@pytest.mark.parametrize("name", ["OxfordIIITPet", "oxford_iiit_pet", "oxford-iiit-pet", "PETS"])
def test_names_of_torchvision_are_also_understood(name: str, tmp_path: Path) -> None:
    copies.pets(tmp_path)
    assert len(open_torchvision(f"torch/{name}", str(tmp_path), "train", "RGB")) == 4


@pytest.mark.parametrize("case", WHOLE, **by_name)
def test_set_without_splits_is_divided_by_val_share(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path)
    with pytest.raises(DataError, match=f"torch/{case.name} has no splits: pass --data.val_share 0.2"):
        fitted(tmp_path, case.name)
    data = fitted(tmp_path, case.name, val_share=0.3)
    held_out = {name for batch in data.val_dataloader() for name in batch.name}
    trained = {name for batch in data.train_dataloader() for name in batch.name}
    data.setup("test")
    assert {name for batch in data.test_dataloader() for name in batch.name} == held_out
    whole = open_torchvision(f"torch/{case.name}", str(tmp_path), "train", "RGB", undivided=True)
    counts = Counter(whole.targets())
    assert len(held_out) == sum(round(0.3 * count) for count in counts.values())
    assert not held_out & trained
    evaluated = ImageClassificationData(name=f"torch/{case.name}", root=str(tmp_path), val_share=0.3, num_workers=0)
    evaluated.setup("validate")
    assert {name for batch in evaluated.val_dataloader() for name in batch.name} == held_out


def test_splits_of_torchvision_can_be_named(tmp_path: Path) -> None:
    copies.fgvc_aircraft(tmp_path)
    data = fitted(tmp_path, "fgvc_aircraft", train_split="trainval", val_split="test")
    assert {Path(name).name[:4] for batch in data.val_dataloader() for name in batch.name} == {"test"}
    copies.usps(tmp_path)
    assert len(open_torchvision("torch/usps", str(tmp_path), "training", "L")) == 20


def test_every_set_but_a_few_is_tested_with_a_copy() -> None:
    """Pcam needs h5py; the others are of the kind of emnist and usps, read from torchvision's pickles."""
    untested = {name for name in TORCHVISION if "/" not in name} - {case.name.partition("/")[0] for case in CASES}
    assert untested == {"cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "qmnist"}


def test_probe_of_a_set_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies.stl10(tmp_path)
    words = f"--data.name torch/stl10 --data.root {tmp_path} --data.num_workers 0 --heads knn --device cpu"
    cache = ["--features.cache", str(tmp_path / "cache")]
    assert run(evaluate.main, ["probe", "--model", "nat_pico.cifar10", *words.split(), *cache]) == 0
    assert "nat_pico.cifar10 (random) on torch/stl10, 20 + 20 images" in capsys.readouterr().out


def test_set_without_splits_is_trained_and_evaluated_by_the_printed_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copies.eurosat(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = f"--data.name torch/eurosat --data.root {tmp_path} --data.val_share 0.3 --data.num_workers 0"
    model = "--model.name test_resnet --data.img_size 32 --data.batch_size 3 --trainer.max_epochs 1"
    assert run(train.main, ["fit", *words.split(), *model.split(), "--trainer.accelerator", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "torch/eurosat: 6 train, 3 validation images of 3 classes" in printed
    command = next(line for line in printed.splitlines() if line.startswith("evaluate:"))
    words = "--data.num_workers 0 --device cpu --output r.json"
    assert run(evaluate.main, [*shlex.split(command)[3:], *words.split()]) == 0
    assert json.loads(Path("r.json").read_text())["num_images"] == 3


def test_table_of_the_documentation_names_every_set_under_its_splits() -> None:
    expected: dict[str, set[str]] = {}
    for name, found in TORCHVISION.items():
        validation, test = found.splits.get("validation"), found.splits.get("test")
        shared = "train, test" if test in ("test", False) else "train, val"
        splits = "none" if not found.splits else shared if validation == test else "train, val, test"
        if "/" not in name:
            expected.setdefault(splits, set()).add(name)
    page = (Path(__file__).parents[2] / "docs" / "probe.md").read_text(encoding="utf-8")
    for splits, names in expected.items():
        (row,) = re.findall(rf"^\| {splits}(?:: .*)? \| (.*) \|$", page, re.MULTILINE)
        variants = re.findall(r"`(\w+)` \([^)]*`/(\w+)`", row)
        assert set(re.findall(r"`(\w+)`", row)) == names, splits
        assert all(f"{name}/{variant}" in TORCHVISION for name, variant in variants)
