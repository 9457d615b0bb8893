"""Re-identification on a folder for each identity: who is trained on, what is a query, what counts as a match."""

import csv
import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from visionattn.cli import evaluate, train
from visionattn.cli.errors import run
from visionattn.data import DataError, ReidData
from visionattn.metrics import evaluate_retrieval

PEOPLE = [f"p{number}" for number in range(1, 11)]


@pytest.fixture
def people(tmp_path: Path, write_images) -> Path:  # type: ignore[no-untyped-def]
    """Write a folder for each of ten people: four images by two cameras each, one image of p10."""
    names = [f"{person}/{n}_c{1 + n // 2}.jpg" for person in PEOPLE[:9] for n in range(4)]
    return write_images(tmp_path / "people", *names, "p10/0_c1.jpg")  # type: ignore[no-any-return]


def opened(root: Path, stage: str = "fit", **options: Any) -> ReidData:
    sizes = {"height": 16, "width": 8, "batch_size": 4, "instances": 2, "num_workers": 0, "seed": 0}
    data = ReidData(root=str(root), **sizes | options)
    data.setup(stage)
    return data


def evaluated(data: ReidData) -> tuple[list[str], list[str], torch.Tensor, torch.Tensor]:
    """Return the images of queries and gallery as IDENTITY/NAME, and the targets and cameras of both."""
    batches = list(data.val_dataloader())
    names = ["/".join(Path(name).parts[-2:]) for batch in batches for name in batch.name]
    targets, cameras = (torch.cat([getattr(batch, what) for batch in batches]) for what in ("target", "camera"))
    return names[: data.num_query], names[data.num_query :], targets, cameras


def identities(names: list[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


def test_identities_are_divided_and_each_has_one_query(people: Path) -> None:
    data = opened(people, val_share=0.3)
    query, gallery, targets, _ = evaluated(data)
    looked_for = identities([*query, *gallery])
    assert len(looked_for) == 3
    assert set(data.class_names) == set(PEOPLE) - looked_for
    assert data.class_names == sorted(data.class_names, key=lambda name: int(name[1:]))
    several = [name for name in looked_for if name != "p10"]
    assert sorted(identities(query)) == sorted(several)
    assert len(query) == len(several)
    assert len({*query, *gallery}) == len(query) + len(gallery) == sum(4 if p != "p10" else 1 for p in looked_for)
    numbers = {name.split("/")[0]: target for name, target in zip([*query, *gallery], targets.tolist(), strict=True)}
    assert [numbers[name.split("/")[0]] for name in [*query, *gallery]] == targets.tolist()
    assert len(set(numbers.values())) == len(numbers)
    batch = next(iter(data.train_dataloader()))
    assert [data.class_names[target] for target in batch.target] == [Path(name).parent.name for name in batch.name]


def test_an_only_image_is_in_the_gallery(people: Path) -> None:
    data = opened(people, "validate", val_share=1.0)
    query, gallery, *_ = evaluated(data)
    assert identities(query) == set(PEOPLE) - {"p10"}
    assert Counter(name.split("/")[0] for name in gallery) == {**dict.fromkeys(PEOPLE[:9], 3), "p10": 1}


def test_division_depends_on_names_alone(people: Path, tmp_path: Path, write_images) -> None:  # type: ignore[no-untyped-def]
    first = evaluated(opened(people, val_share=0.3))[:2]
    moved = people.rename(tmp_path / "elsewhere")
    assert evaluated(opened(moved, seed=7, val_share=0.3))[:2] == first
    write_images(moved, *(f"p11/{n}_c1.jpg" for n in range(4)))
    smaller, larger = opened(moved, val_share=0.3), opened(moved, val_share=0.6)
    assert len(set(opened(moved, val_share=0.3).class_names) & identities([*first[0], *first[1]])) <= 1
    assert set(larger.class_names) < set(smaller.class_names)


def test_every_other_image_of_an_identity_matches_without_cameras(people: Path) -> None:
    data = opened(people, "validate", val_share=1.0)
    *_, ids, cameras = evaluated(data)
    features = torch.randn(len(ids), 4)
    q = data.num_query
    parts = (features[:q], features[q:], ids[:q], ids[q:])
    assert evaluate_retrieval(*parts, cameras[:q], cameras[q:]) == evaluate_retrieval(*parts)
    assert evaluate_retrieval(*parts)["num_valid_queries"] == 9


def test_camera_in_file_names(people: Path) -> None:
    data = opened(people, "validate", val_share=1.0, camera=r"_c(\d)")
    query, gallery, _, cameras = evaluated(data)
    assert [int(name[-5]) - 1 for name in [*query, *gallery]] == cameras.tolist()


def test_camera_may_be_a_folder_below_the_identity(tmp_path: Path, write_images) -> None:  # type: ignore[no-untyped-def]
    names = [
        f"x{person}_north/{camera}/{n}.jpg" for person in range(4) for camera in ("north", "south") for n in (1, 2)
    ]
    data = opened(write_images(tmp_path / "nested", *names), "validate", val_share=1.0, camera="(north|south)")
    assert sorted(Counter(evaluated(data)[3].tolist()).items()) == [(0, 8), (1, 8)]
    assert len(data._images["gallery"]) == 12


def test_folder_with_its_own_query_and_gallery(tmp_path: Path, write_images) -> None:  # type: ignore[no-untyped-def]
    train_names = [f"train/{person}/{n}.png" for person in ("ann", "bob", "cyd") for n in range(2)]
    others = ["query/dan/0.png", "query/eve/0.png", *(f"gallery/{person}/1.png" for person in ("dan", "eve", "fay"))]
    root = write_images(tmp_path / "divided", *train_names, *others)
    data = opened(root)
    assert data.name == "folder"
    assert data.class_names == ["ann", "bob", "cyd"]
    query, gallery, ids, _ = evaluated(data)
    assert (query, gallery) == (["dan/0.png", "eve/0.png"], ["dan/1.png", "eve/1.png", "fay/1.png"])
    assert ids[:2].tolist() == ids[2:4].tolist()
    assert data.describe() == f"{root}: 6 train images of 3 identities, 2 queries and 3 gallery images of 3 identities"
    with pytest.raises(DataError, match=r"has a query and a gallery of its own: leave out --data.val_share 0.5"):
        opened(root, val_share=0.5)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("0001/x.jpg", "folder"),
        ("query/0001/x.jpg", "folder"),
        ("bounding_box_train/0001_c1.jpg", "market1501"),
        ("Market-1501-v15.09.15/bounding_box_test/0001_c1.jpg", "market1501"),
        ("VeRi/image_query/0001_c1.jpg", "veri776"),
        ("MSMT17/list_query.txt", "msmt17"),
        ("train_test_split/train_list.txt", "vehicleid"),
        ("x.jpg", "market1501"),
    ],
)
def test_layout_is_found_in_the_root(tmp_path: Path, place: str, name: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    assert ReidData(root=str(tmp_path)).name == name


def test_folder_is_trained_and_evaluated_by_the_printed_command(
    people: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(people.parent)
    words = f"--data.root {people} --data.height 32 --data.width 32 --data.batch_size 8 --data.num_workers 0"
    options = "--model.name test_resnet --trainer.max_epochs 1 --trainer.accelerator cpu --data.val_share 0.3"
    assert run(train.main, ["fit", "--task", "reid", *words.split(), *options.split()]) == 0
    printed = capsys.readouterr().out
    assert "identities (--data.val_share 0.3)" in printed
    with Path("runs/test_resnet/0/split.csv").open(encoding="utf-8", newline="") as file:
        rows = [(Path(row["path"]).parent.name, row["identity"], row["split"]) for row in csv.DictReader(file)]
    assert len(rows) == 37
    assert all(folder == identity for folder, identity, _ in rows)
    assert sorted({identity for _, identity, split in rows if split == "train"}) == sorted(
        opened(people, val_share=0.3).class_names
    )
    command = next(line for line in printed.splitlines() if line.startswith("evaluate:"))
    words = "--data.num_workers 0 --device cpu --output r.json"
    assert "--data.val_share 0.3" in command
    assert run(evaluate.main, [*shlex.split(command)[3:], *words.split()]) == 0
    described, *_ = capsys.readouterr().out.splitlines()
    result = json.loads(Path("r.json").read_text())
    assert described.startswith(f"{people}: {result['num_query']} queries and {result['num_gallery']} gallery images")
    known = len(set(opened(people, val_share=0.3).class_names) - {"p10"})
    says = rf"was trained on {known} of the 9 identities to look for \(p\d+, p\d+, p\d+, …\)"
    with pytest.warns(UserWarning, match=says):
        assert run(evaluate.main, [*shlex.split(command)[3:], "--data.val_share", "1", *words.split()]) == 0
