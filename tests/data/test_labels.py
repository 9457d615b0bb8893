"""Labels in tables: which columns and rows count, and the images, targets and classes that follow."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from visionattn.data import DataError, ImageClassificationData

WriteImages = Callable[..., Path]
WriteTable = Callable[..., str]

IMAGES = [f"{place}/{number}.png" for place in ("here", "there") for number in range(6)]


@pytest.fixture
def root(tmp_path: Path, write_images: WriteImages) -> Path:
    return write_images(tmp_path / "images", *IMAGES)


@pytest.fixture
def table(tmp_path: Path) -> WriteTable:
    """Return a function that writes lines to a table, and returns its path."""

    def write(*lines: str, name: str = "labels.csv", encoding: str = "utf-8") -> str:
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding=encoding)
        return str(tmp_path / name)

    return write


def opened(root: Path | None, labels: str, stage: str = "fit", **options: object) -> ImageClassificationData:
    where = None if root is None else str(root)
    data = ImageClassificationData(root=where, labels=labels, img_size=8, batch_size=4, num_workers=0, **options)  # type: ignore[arg-type]
    data.setup(stage)
    return data


def contents(data: ImageClassificationData, split: str) -> dict[str, object]:
    """Return the label of each image by its path, or the labels."""
    names = data.class_names
    found: dict[str, object] = {}
    for batch in data.loader(split):
        for path, target in zip(batch.name, batch.target, strict=True):
            several = [name for name, has in zip(names, target, strict=True) if has] if target.ndim else names[target]
            found[Path(path).relative_to(Path(path).parents[1]).as_posix()] = several
    return found


def rows(labels: Callable[[int], str]) -> list[str]:
    return [f"{path},{labels(number)}" for number, path in enumerate(IMAGES)]


def kind(number: int) -> str:
    return ("cat", "dog", "10", "9")[number % 4]


@pytest.mark.parametrize(
    ("header", "row", "options"),
    [
        pytest.param("path,label", "{path},{label}", {}, id="usual names"),
        pytest.param("label,file", "{label},{path}", {}, id="any order"),
        pytest.param("Filename,width,Class", "{path},7,{label}", {}, id="capitals, and another column"),
        pytest.param("where,breed", "{path},{label}", {}, id="first column, and the only one left"),
        pytest.param("a;b", "{path};{label}", {}, id="semicolons"),
        pytest.param("image\tlabel", "{path}\t{label}", {}, id="tabs"),
        pytest.param('"path","label"', '"{path}","{label}"', {}, id="quotes"),
        pytest.param(",path,label", "3,{path},{label}", {}, id="index of pandas"),
        pytest.param("label,x,y", "0,{label},{path}", {"path_column": "y", "label_column": "x"}, id="named columns"),
        pytest.param("id,label", "{stem},{label}", {}, id="without extensions"),
        pytest.param("path,label", "{root}/{path},{label}", {}, id="absolute paths"),
    ],
)
def test_columns_are_found(root: Path, table: WriteTable, header: str, row: str, options: dict[str, str]) -> None:
    lines = [
        row.format(path=path, label=kind(number), stem=path[: -len(".png")], root=root)
        for number, path in enumerate(IMAGES)
    ]
    data = opened(root, table(header, *lines), "validate", **options)
    assert data.class_names == ["9", "10", "cat", "dog"], "in natural order"
    assert contents(data, "validation") == {path: kind(number) for number, path in enumerate(IMAGES)}
    assert not data.multi_label


def test_byte_order_mark_blank_lines_and_repeated_rows_are_no_labels(root: Path, table: WriteTable) -> None:
    file = table("path,label", *rows(kind), "", ",", f"{IMAGES[0]},cat", encoding="utf-8-sig")
    with pytest.warns(UserWarning, match="passed over 1 row that repeat an image and its label"):
        assert len(contents(opened(root, file, "validate"), "validation")) == len(IMAGES)


def test_paths_start_from_the_table_without_a_root(root: Path, table: WriteTable) -> None:
    file = table("path,label", *(f"images/{row}" for row in rows(kind)))
    assert list(contents(opened(None, file, "validate"), "validation")) == IMAGES


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("train", "val", "test"), {}),
        (("Training", "Valid", "testing"), {}),
        (("a", "b", "c"), {"train_split": "a", "val_split": "b", "test_split": "c"}),
        (("train", "val", "val"), {}),
    ],
)
def test_split_column_divides(root: Path, table: WriteTable, names: tuple[str, ...], options: dict[str, str]) -> None:
    split = (names[0], names[0], names[0], names[0], names[1], names[2])
    lines = [f"{path},{'ab'[number // 6]},{split[number % 6]}" for number, path in enumerate(IMAGES)]
    data = opened(root, table("path,label,split", *lines), **options)
    data.setup("test")
    found = {part: list(contents(data, part)) for part in ("train", "validation", "test")}
    for part, name in zip(found, names, strict=True):
        expected = [path for number, path in enumerate(IMAGES) if split[number % 6] == name]
        assert sorted(found[part]) == expected, part


def test_tables_of_their_own_divide(root: Path, table: WriteTable) -> None:
    both = rows(lambda number: "ab"[number % 2])
    train, val, test = (table("path,label", *both[part::3], name=f"{part}.csv") for part in range(3))
    data = opened(root, train, val_labels=val, test_labels=test)
    data.setup("test")
    for part, split in enumerate(("train", "validation", "test")):
        assert sorted(contents(data, split)) == IMAGES[part::3]
    without = opened(root, train, "test", val_labels=val)
    assert list(contents(without, "test")) == IMAGES[1::3]


def test_images_are_held_out_as_those_of_folders_are(root: Path, table: WriteTable) -> None:
    """The same images in the same order are divided in the same way, and a written division reads as it was."""
    folder = ImageClassificationData(root=str(root), val_share=0.3, img_size=8, batch_size=4, num_workers=0)
    folder.setup("fit")
    data = opened(root, table("path,label", *rows(lambda number: IMAGES[number].split("/")[0])), val_share=0.3)
    again = root.parent / "split.csv"
    data.write_split(again)
    for other in (data, opened(root, str(again))):
        for split in ("train", "validation"):
            assert contents(other, split) == contents(folder, split)
    folder.write_split(root.parent / "folder.csv")
    assert (root.parent / "folder.csv").read_text() == again.read_text()


def test_checkpoint_numbers_the_classes(root: Path, table: WriteTable) -> None:
    file = table("path,label", *rows(lambda number: ("puss", "dog")[number % 2]))
    data = ImageClassificationData(
        root=str(root), labels=file, class_map={"puss": "cat"}, img_size=8, batch_size=12, num_workers=0
    )
    data.expect_classes(["dog", "cat", "bird"])
    with pytest.warns(UserWarning, match="has no images of class bird"):
        data.setup("validate")
    assert next(iter(data.val_dataloader())).target.tolist() == [1, 0] * 6


def test_preferred_classes_keep_their_numbers(root: Path, table: WriteTable) -> None:
    file = table("path,label", *rows(lambda number: "abc"[number % 3]))
    data = ImageClassificationData(root=str(root), labels=file, val_share=0.3, img_size=8, num_workers=0)
    data.preferred_classes = ["c", "a", "b"]
    data.setup("fit")
    assert data.class_names == ["c", "a", "b"]
    assert all(label == "abc"[IMAGES.index(path) % 3] for path, label in contents(data, "train").items())


def test_arrays_of_many_channels_are_found_without_extensions(tmp_path: Path, table: WriteTable) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((5, 8, 8), number, np.uint8))
    data = opened(None, table("id,label", "0,a", "1,b", "2,a", "3.npy,b"), "validate", in_chans=5)
    (batch,) = data.val_dataloader()
    assert batch.image.shape == (4, 5, 8, 8)
    assert [Path(name).name for name in batch.name] == ["0.npy", "1.npy", "2.npy", "3.npy"]
    assert batch.target.tolist() == [0, 1, 0, 1]


SEVERAL = {number: [name for bit, name in enumerate(("dog", "cat")) if number & 1 << bit] for number in range(12)}
"""None, dog, cat, or both of them."""


@pytest.mark.parametrize(
    ("header", "label", "options"),
    [
        pytest.param("path,dog,cat", "{dog},{cat}", {}, id="0 and 1"),
        pytest.param("path,dog,cat", "{dog}.0,{cat}.0", {"multi_label": True}, id="0.0 and 1.0"),
        pytest.param("path,age,dog,cat", "9,{dog},{cat}", {"label_column": ["dog", "cat"]}, id="named columns"),
        pytest.param("path,label", "{names:|}", {"multi_label": True}, id="bar"),
        pytest.param("path,label", "{names:;}", {"multi_label": True}, id="semicolon"),
        pytest.param("path,tags", "{names: }", {"multi_label": True, "label_separator": " "}, id="blank"),
    ],
)
def test_several_labels(root: Path, table: WriteTable, header: str, label: str, options: dict[str, object]) -> None:
    class Joined(str):
        def __format__(self, separator: str) -> str:
            return separator.join(self.split())

    def text(number: int) -> str:
        dog, cat = (int(name in SEVERAL[number]) for name in ("dog", "cat"))
        return label.format(dog=dog, cat=cat, names=Joined(" ".join(SEVERAL[number])))

    data = opened(root, table(header, *rows(text)), "validate", **options)
    assert data.multi_label
    assert data.class_names == ["cat", "dog"]
    assert contents(data, "validation") == {path: sorted(SEVERAL[number]) for number, path in enumerate(IMAGES)}
    loader = data.val_dataloader()
    batch = next(iter(loader))
    assert (batch.target.dtype, batch.target.shape) == (torch.float32, (4, 2))
    item = loader.dataset[next(iter(loader.sampler))]  # type: ignore[attr-defined, index]
    assert torch.is_tensor(item.target)
    targets = loader.dataset.source.targets()  # type: ignore[attr-defined]
    assert (targets.dtype, targets.shape) == (np.bool_, (12, 2))
    assert loader.collate_fn([]).target.shape == (0, 2)


def test_columns_of_one_1_each_are_one_label_if_wanted(root: Path, table: WriteTable) -> None:
    file = table("image,b,a", *rows(lambda number: "1,0" if number < 6 else "0,1"))
    data = opened(root, file, "validate", multi_label=False)
    assert contents(data, "validation") == {path: "ba"[number // 6] for number, path in enumerate(IMAGES)}


def test_several_labels_are_written_and_read_as_they_were(root: Path, table: WriteTable) -> None:
    file = table("path,label", *rows(lambda number: "|".join(SEVERAL[number])))
    data = opened(root, file, multi_label=True, val_share=0.25)
    data.write_split(root.parent / "split.csv")
    again = opened(root, str(root.parent / "split.csv"))
    assert again.multi_label
    for split in ("train", "validation"):
        assert contents(again, split) == contents(data, split)


def test_several_labels_of_one_class_are_written_and_read_as_they_were(root: Path, table: WriteTable) -> None:
    data = opened(root, table("path,cat", *rows(lambda number: str(number % 2))), "validate", multi_label=True)
    assert data.class_names == ["cat"]
    data.write_split(root.parent / "split.csv")
    again = opened(root, str(root.parent / "split.csv"), "validate", multi_label=True)
    assert contents(again, "validation") == contents(data, "validation")
    assert sum(map(len, contents(data, "validation").values())) == len(IMAGES) // 2  # type: ignore[arg-type]


def test_images_in_two_tables_are_warned_of(root: Path, table: WriteTable) -> None:
    both = rows(lambda number: "ab"[number % 2])
    train, val = table("path,label", *both[:8], name="0.csv"), table("path,label", *both[6:], name="1.csv")
    with pytest.warns(UserWarning, match=r"1\.csv has 2 images of .*0\.csv, such as there/0\.png: the validation is"):
        opened(root, train, val_labels=val)


def test_folder_is_no_image(root: Path, table: WriteTable) -> None:
    with pytest.raises(DataError, match=r"line 2: there is no image .*/here: correct the row"):
        opened(root, table("path,label", "here,cat"), "validate")


def test_tables_of_different_kinds_are_refused(root: Path, table: WriteTable) -> None:
    one = table("path,label", *rows(kind), name="one.csv")
    several = table("path,cat,dog,9,10", *rows(lambda number: "0,1,0,0"), name="several.csv")
    with pytest.raises(DataError, match=r"several.csv has several labels per image, .*one.csv has one"):
        opened(root, one, val_labels=several)
