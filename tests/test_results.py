"""results/cifar10.py: from run folders to weights, table and plot."""

import contextlib
import csv
import itertools
import json
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import timm
from PIL import Image
from safetensors.torch import load_file

from visionattn.cli.errors import run
from visionattn.cli.train import main as train
from visionattn.models import _weights
from visionattn.models._weights import unpack
from visionattn.viz.figure import new_figure

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script, and let it write to another folder."""
    module = import_module("results.cifar10")
    places = {
        "TABLE": "t.csv",
        "PLOT": "p.png",
        "README": "README.md",
        "FOLDER": "weights",
        "CHECKSUMS": "weights/SUMS",
    }
    for name, place in places.items():
        monkeypatch.setattr(module, name, tmp_path / place)
    speeds = {"results": [{"model": "vit_nano_patch4_32", "images_per_second": 1234.5}]}
    (tmp_path / "speeds.json").write_text(json.dumps(speeds))
    monkeypatch.setattr(module, "SPEEDS", tmp_path / "speeds.json")
    (tmp_path / "README.md").write_text(f"before\n{module.BEGIN}\nold\n{module.END}\nafter\n")
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw images of ten classes, and train on them: two seeds of a classifier, and a masked autoencoder."""
    place = tmp_path_factory.mktemp("trained")
    for split, count in (("train", 3), ("test", 2)):
        for label in range(10):
            folder = place / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.effect_noise((32, 32), 60).convert("RGB").save(folder / f"{number}.png")
    options = ["--data.root=images", "--data.num_workers=0", "--data.holdout_per_class=1", "--data.batch_size=8"]
    options += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.accelerator=cpu"]
    with contextlib.chdir(place):
        for name, config, seed in (
            ("seed1", "cifar10/vit", 1),
            ("seed0", "cifar10/vit", 0),
            ("mae", "ssl/mae_cifar10", 0),
        ):
            words = [f"--config={ROOT / 'configs' / f'{config}.yaml'}", f"--seed_everything={seed}"]
            assert run(train, ["fit", *words, *options, f"--run_name={name}"]) == 0
    return place


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Copy the trainings of the two seeds into the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return ["runs/seed1/0", "runs/seed0/0"]


def test_results_weights_table_and_plot_are_written(script: ModuleType, runs: list[str], tmp_path: Path) -> None:
    assert script.main(["--root", "images", runs[0]]) == 0
    assert script.main(["--root", "images", runs[1], "images"]) == 0, "what is no run is left out"
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["seed"], row["epochs"]) for row in rows] == [
        ("vit_nano_patch4_32", "0", "1"),
        ("vit_nano_patch4_32", "1", "1"),
    ]
    found = [json.loads((Path(folder) / "test.json").read_text()) for folder in reversed(runs)]
    assert [float(row["test_top1"]) for row in rows] == [round(100 * each["top1"], 2) for each in found]
    assert [each["num_images"] for each in found] == [20, 20]
    held = unpack(load_file(tmp_path / "weights" / "vit_nano_patch4_32.cifar10" / "model.safetensors"))
    best = timm.create_model(f"local-dir:{tmp_path / 'runs' / 'seed0' / '0' / 'export'}", pretrained=True).state_dict()
    assert all((held[key].float() == best[key]).all() for key in best), "the lowest seed's"
    (line,) = (tmp_path / "weights" / "SUMS").read_text().splitlines()
    assert line.endswith("  vit_nano_patch4_32.cifar10/model.safetensors")
    card = (tmp_path / "weights" / "vit_nano_patch4_32.cifar10" / "README.md").read_text()
    assert 'timm.create_model("vit_nano_patch4_32.cifar10", pretrained=True).eval()\n' in card
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- cifar10")
    assert text.endswith("<!-- cifar10 ends -->\nafter\n")
    mean = sum(each["top1"] for each in found) / 2
    assert (
        f"| `vit_nano_patch4_32.cifar10` | 0.68 M | 1,234 | 1, 0 | {100 * found[0]['top1']:.2f} | {100 * mean:.2f} ±"
        in text
    )
    assert Image.open(tmp_path / "p.png").size[0] > 1000


def test_results_read_test_images_once(script: ModuleType, runs: list[str], tmp_path: Path) -> None:
    assert script.main(["--root", "images", runs[0]]) == 0
    before = (tmp_path / "t.csv").read_text()
    assert script.main(["--root", "gone", runs[0]]) == 0
    assert (tmp_path / "t.csv").read_text() == before
    assert script.main([]) == 0
    assert (tmp_path / "t.csv").read_text() == before


def test_encoders_go_to_the_weights_alone(
    script: ModuleType, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.main(["runs/mae/0"]) == 0
    assert (tmp_path / "t.csv").read_text().strip() == ""
    name = "vit_pico_patch4_32.mae_cifar10"
    held = unpack(load_file(tmp_path / "weights" / name / "model.safetensors"))
    encoder = timm.create_model(f"local-dir:{tmp_path / 'runs' / 'mae' / '0' / 'export'}", pretrained=True)
    assert encoder.num_classes == 0
    assert all((held[key].float() == value).all() for key, value in encoder.state_dict().items())
    assert "without their labels" in (tmp_path / "weights" / name / "README.md").read_text()
    monkeypatch.setattr(_weights, "FOLDER", tmp_path / "weights")
    assert "label_names" not in _weights.packaged(name)


def test_results_without_a_speed_have_a_dash(script: ModuleType, runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "speeds.json").write_text('{"results": []}')
    assert script.main(["--root", "images", runs[0]]) == 0
    assert "| `vit_nano_patch4_32.cifar10` | 0.68 M | – |" in (tmp_path / "README.md").read_text()


def test_plot_labels_do_not_overlap(script: ModuleType) -> None:
    figure = new_figure(4.0, 3.0)
    axes = figure.subplots()
    names = ["aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"]
    points = [(0.0, 0.0), (0.01, 0.01), (0.02, 0.0), (1.0, 1.0)]  # three nearly on one another, one at the edge
    axes.plot(*zip(*points, strict=True), "o")
    figure.draw_without_rendering()
    script.label_points(axes, names, points)
    assert [text.get_text() for text in axes.texts] == names
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
