"""Faults of data sets by name, and of folders of identities."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visionattn.cli.errors import describe
from visionattn.data import DataError, ImageClassificationData, ReidData

Fails = Callable[..., str]


def complaint(data: Callable[..., ImageClassificationData | ReidData], **options: Any) -> str:
    """Return the error for data that cannot be used, as a command prints it."""
    try:
        opened = data(num_workers=0, **options)
        opened.setup("fit")
        opened.train_dataloader()
        opened.val_dataloader()
    except DataError as error:
        return describe(error)
    pytest.fail("the data are usable")


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 80, 80)).save(root / name)
    return root


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("foot101", "unknown data set 'torch/foot101'; did you mean torch/food101", id="near"),
        pytest.param("xyz", "unknown data set 'torch/xyz': one of torch/caltech101, torch/", id="unknown"),
        pytest.param("dtd/11", "unknown data set 'torch/dtd/11'; did you mean torch/dtd", id="variant"),
        pytest.param("dtd", "torch/dtd is not, or not complete, in ROOT/dtd/dtd; --data.download true", id="files"),
        pytest.param("usps", "torch/usps: there is no ROOT/usps.bz2; --data.download true downloads it", id="file"),
        pytest.param("fer2013", "not complete, in ROOT/fer2013; train.csv not found in ROOT", id="no download"),
        pytest.param("imagenet", "; The archive ILSVRC2012_devkit_t12.tar.gz is not present", id="by hand"),
        pytest.param("sun397", "torch/sun397 has no splits: pass --data.val_share 0.2 to validate", id="no splits"),
    ],
)
def test_torchvision_set_that_cannot_be_opened_is_an_error(tmp_path: Path, name: str, says: str) -> None:
    found = complaint(ImageClassificationData, name=f"torch/{name}", root=str(tmp_path))
    assert says.replace("ROOT", str(tmp_path)) in found
    assert list(tmp_path.iterdir()) == []


def test_torchvision_set_without_a_root_is_an_error(tmp_path: Path) -> None:
    says = "torch/svhn needs --data.root FOLDER, with train_32x32.mat in it; --data.download true downloads it"
    assert complaint(ImageClassificationData, name="torch/svhn") == f"--data.name {says}"
    says = f"no such data folder: {tmp_path}/gone (--data.root, with train_32x32.mat in it; --data.download true "
    assert complaint(ImageClassificationData, name="torch/svhn", root=str(tmp_path / "gone")).startswith(says)


def test_download_without_a_network_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = complaint(ImageClassificationData, name="torch/usps", root=str(tmp_path), download=True)
    assert found == "cannot download torch/usps: <urlopen error [Errno -2] Name or service not known>"


def test_download_over_a_damaged_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dtd/dtd/labels").mkdir(parents=True)
    found = complaint(ImageClassificationData, name="torch/dtd", root=str(tmp_path), download=True)
    labels = f"{tmp_path}/dtd/dtd/labels/train1.txt"
    assert found == f"torch/dtd: there is no {labels}; remove {tmp_path}/dtd/dtd to download it again"


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("food101", "val", "Unknown value 'val' for argument split. Valid values are {'train', 'test'}"),
        ("usps", "extra", "Unknown split 'extra'. Valid values are 'train' and 'test'"),
    ],
)
def test_split_that_a_torchvision_set_has_not_is_an_error(tmp_path: Path, name: str, split: str, says: str) -> None:
    found = complaint(ImageClassificationData, name=f"torch/{name}", root=str(tmp_path), train_split=split)
    assert found == f"data set 'torch/{name}', split '{split}': {says}; --data.train_split names another split"


FOUR = tuple(f"{name}/{n}_c1.png" for name in "abcd" for n in range(2))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        pytest.param(FOUR[:2], "ROOT has one identity, a: expected ROOT/IDENTITY/*.jpg, with at least two", id="one"),
        pytest.param(FOUR[:6], "3 identities, 2 of them to evaluate on (--data.val_share 0.2): at least", id="three"),
        pytest.param(FOUR[::2], "nothing to find under ROOT: none of the 2 identities", id="one image each"),
        pytest.param((*FOUR, "e.png"), "ROOT/e.png is in no identity's folder: move it to ROOT/ID", id="outside"),
        pytest.param(("train/a/0.png", "val/b/0.png"), "ROOT has splits of classes: name its folders", id="splits"),
        pytest.param(("train/a/0.png", "query/b/0.png"), "no such data folder: ROOT/gallery", id="no gallery"),
        pytest.param(
            ("train/a/0.png", "train/b/0.png", "query/c/0.png", "gallery/d/0.png"),
            "none of the 1 queries of ROOT has a match in the gallery",
            id="no match",
        ),
    ],
)
def test_folder_of_identities_that_cannot_be_evaluated_is_an_error(
    tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    root = write(tmp_path / "people", *names)
    assert says.replace("ROOT", str(root)) in complaint(ReidData, root=str(root), batch_size=4, instances=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"camera": r"_d(\d)"}, r"_c1.png has no camera by --data.camera '_d(\d)'", id="no match"),
        pytest.param({"camera": r"_c\d"}, "'_c\\d' must have the camera in parentheses, such as", id="no group"),
        pytest.param({"camera": "_c("}, "--data.camera '_c(' is no regular expression: missing )", id="no expression"),
        pytest.param({"camera": r"_c(\d)"}, "the gallery has 1 camera", id="one camera"),
        pytest.param({"val_share": 0.0}, "--data.val_share must be greater than 0 and at most 1, got 0.0", id="share"),
        pytest.param({"val_share": 1.0}, "4 of them to evaluate on (--data.val_share 1.0): at least two", id="all"),
    ],
)
def test_option_that_does_not_fit_a_folder_of_identities_is_an_error(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    root = str(write(tmp_path / "people", *FOUR))
    assert says in complaint(ReidData, root=root, batch_size=4, instances=2, **options)


def test_options_of_identity_folders_are_refused_for_other_sets() -> None:
    says = "--data.val_share is for a folder for each identity, not for identities"
    assert complaint(ReidData, val_share=0.3) == says


def test_errors_are_one_line_of_the_command(tmp_path: Path, fails: Fails) -> None:
    root = write(tmp_path / "people", *FOUR)
    fit = ("fit", "--model.name", "test_resnet", "--data.num_workers", "0", "--data.root", root)
    fails(*fit, "--data.name", "torch/sun397", says="torch/sun397 has no splits: pass --data.val_share 0.2")
    fails(
        *fit, "--task", "reid", "--data.camera", r"_d(\d)", says=r"has no camera by --data.camera '_d(\d)': rename it"
    )
