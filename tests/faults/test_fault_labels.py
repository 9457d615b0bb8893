"""Faults of tables with labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visionattn.cli.errors import describe
from visionattn.data import DataError, ImageClassificationData

Run = Callable[..., Any]
Fails = Callable[..., str]
Quick = tuple[str, ...]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes lines to a table; the images a.png to f.png lie beside it."""
    for name in "abcdef":
        Image.new("RGB", (8, 8), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")

    def write(*lines: str, name: str = "labels.csv") -> Path:
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        return tmp_path / name

    return write


def complaint(stage: str, **options: Any) -> str:
    """Return the error for tables that cannot be used."""
    with pytest.raises(DataError) as error:
        ImageClassificationData(**{"img_size": 16, "num_workers": 0} | options).setup(stage)
    return describe(error.value)


@pytest.mark.parametrize(
    ("lines", "options", "says"),
    [
        pytest.param([], {}, "has no images: a header such as 'path,label', and a row for each image,", id="empty"),
        pytest.param(["path,label"], {}, "has no images: a header such as 'path,label',", id="header only"),
        pytest.param(["a.png,red", "b.png,red"], {}, "begins with an image, not with a header", id="no header"),
        pytest.param(
            ["label,width", "red,7"],
            {},
            "has no path column (path, file, filename, …): its columns are label, width; --data.path_column names it",
            id="no path column",
        ),
        pytest.param(
            ["path,width,height", "a.png,7,7"],
            {},
            "has no label column (label, labels, class, …): its columns are path, width, height; --data.label_column",
            id="no label column",
        ),
        pytest.param(
            ["path,label", "a.png,red"],
            {"label_column": "breed"},
            "has no column breed (--data.label_column): its columns are path, label",
            id="no such column",
        ),
        pytest.param(
            ["path,label", "a.png,red", "x.png,red", "b.png,red", "y.png,red", "z.png,red"],
            {},
            "line 3: there is no image {folder}/x.png (nor 2 others of 5): correct the row, or name the folder of the "
            "images with --data.root",
            id="missing images",
        ),
        pytest.param(
            ["path,label", "a.png,red", "b.png,blue", "a.png,blue"],
            {},
            "line 4: a.png has another label than in line 2: remove one row",
            id="two labels",
        ),
        pytest.param(
            ["path,label", "a.png,red", "./a.png,blue"],
            {},
            "line 3: a.png has another label than in line 2: remove one row",
            id="two paths",
        ),
        pytest.param(
            ["path,label", 'a.png,"red', "b.png,blue"],
            {},
            "is no table in CSV or TSV: unexpected end of data; check its quotation marks",
            id="quotation mark",
        ),
        pytest.param(
            ["path,label,split", "a.png,red,train", "a.png,red,val"],
            {},
            "line 3: a.png has another split than in line 2: remove one row",
            id="two splits",
        ),
        pytest.param(
            ["path,label", "a.png,red", "b.png,"], {}, "line 3: the image has no label: add it, or", id="no label"
        ),
        pytest.param(
            ["path,label", "a.png,red", "b.png,red,7"], {}, "line 3 has 3 cells, the header has 2", id="cells"
        ),
        pytest.param(
            ["path,cat,dog", "a.png,0,1", "b.png,1,2"],
            {},
            "line 3: column dog has '2', where 0 or 1 is expected; --data.label_column names the columns of labels",
            id="neither 0 nor 1",
        ),
        pytest.param(
            ["path,cat,dog", "a.png,0,1", "b.png,1,1"],
            {"multi_label": False},
            "line 3: the image has 2 labels: leave out --data.multi_label false",
            id="more than one label",
        ),
        pytest.param(
            ["path,cat,dog", "a.png,0,1"],
            {"multi_label": True, "label_separator": "|"},
            "has a column for each label: leave out --data.label_separator",
            id="separator of columns",
        ),
        pytest.param(
            ["path,label,split", "a.png,red,one", "b.png,red,two"],
            {},
            "has no rows of split validation or val or valid or test: its column split has one, two; --data.val_split "
            "names one",
            id="no such split",
        ),
        pytest.param(
            ["path,label", "a.png,red"],
            {"val_split": "val"},
            "has no column split: leave out --data.val_split val",
            id="no splits",
        ),
    ],
)
def test_table_that_does_not_fit_is_an_error(
    table: Callable[..., Path], lines: list[str], options: dict[str, Any], says: str
) -> None:
    file = table(*lines)
    message = complaint("validate", labels=str(file), **options)
    assert message.startswith(str(file))
    assert says.format(folder=file.parent) in message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            {"label_separator": "|"},
            "--data.label_separator '|' must be the characters between several labels of an image: add "
            "--data.multi_label true, or leave it out",
            id="separator of one label",
        ),
        pytest.param({"name": "digits"}, "--data.labels {file} is for images in files: digits has", id="digits"),
        pytest.param({"root": "gone"}, "no folder gone: with --data.labels, --data.root names", id="no root"),
        pytest.param(
            {"val_labels": "val.csv", "val_share": 0.2},
            "--data.val_share 0.2 takes the place of --data.val_labels val.csv: leave one out",
            id="two divisions",
        ),
        pytest.param(
            {"labels": None, "val_labels": "val.csv"},
            "--data.val_labels val.csv goes with --data.labels FILE.csv",
            id="validation only",
        ),
        pytest.param(
            {"labels": None, "path_column": "x"}, "--data.path_column x goes with --data.labels", id="columns only"
        ),
        pytest.param({}, "{file} has no column split: pass --data.val_share 0.2, or --data.val_labels", id="undivided"),
        pytest.param(
            {"labels": "gone.csv"},
            "cannot read gone.csv: No such file or directory (--data.labels takes",
            id="no table",
        ),
        pytest.param(
            {"labels": "."}, "cannot read .: Is a directory (--data.labels takes a CSV or TSV file)", id="folder"
        ),
    ],
)
def test_options_that_do_not_fit_a_table_are_an_error(
    table: Callable[..., Path], options: dict[str, Any], says: str
) -> None:
    file = table("path,label", "a.png,red", "b.png,blue")
    assert says.format(file=file) in complaint("fit", **{"labels": str(file)} | options)


def test_table_that_is_not_utf8_is_an_error(table: Callable[..., Path]) -> None:
    file = table()
    file.write_bytes("path,label\na.png,Käse\n".encode("utf-16"))
    assert complaint("validate", labels=str(file)) == f"{file} is no table in UTF-8: save it as CSV or TSV in UTF-8"


def test_label_in_validation_alone_is_an_error(table: Callable[..., Path]) -> None:
    file = table("path,label,split", "a.png,red,train", "b.png,blue,train", "c.png,green,val")
    says = f"{file} has class green, which the 2 classes trained on (blue, red) do not include: rename the labels, or "
    assert complaint("fit", labels=str(file)).startswith(says)


def test_labels_that_may_be_several_are_warned_of(table: Callable[..., Path]) -> None:
    data = ImageClassificationData(labels=str(table("path,label", "a.png,red|blue", "b.png,red")), num_workers=0)
    with pytest.warns(UserWarning, match=r"'red\|blue' counts as one label; if it is several, pass --data.multi_label"):
        data.setup("validate")


def test_commands_name_the_fault_of_a_table(table: Callable[..., Path], fails: Fails, quick: Quick) -> None:
    file = table("path,label", "a.png,red", "b.png,blue", "gone.png,red")
    says = f"{file}, line 4: there is no image {file.parent}/gone.png: correct the row, or name the folder"
    fails("fit", *quick, "--data.labels", file, "--data.val_share", "0.5", says=says)
    table("path,cat,dog", "a.png,0,1", "b.png,1,1", name="several.csv")
    words = ("probe", "--model", "test_vit", "--data.labels", file.parent / "several.csv", "--data.val_labels")
    fails(*words, file.parent / "several.csv", "--data.num_workers", "0", says="have several labels: probing needs one")
