"""eval.py binding in this process, on small synthetic scenes."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visionattn.cli.errors import run
from visionattn.cli.evaluate import main

KWARGS = {"img_size": 32, "patch_size": 8, "depth": 3}
FAST = ["--device", "cpu", "--data.num_workers", "0", "--data.length", "8", "--data.val_length", "4"]
FAST += ["--data.batch_size", "4", "--training.epochs", "2", "--training.rank", "4"]
VIT = ["--model", "test_vit", "--model_kwargs", json.dumps(KWARGS)]
PROBES = ["quadratic", "linear", "class", "cosine"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def binding(*argv: str | Path) -> int:
    return run(main, ["binding", *FAST, *map(str, argv)])


def results(path: Path | str) -> list[dict[str, Any]]:
    return json.loads(Path(path).read_text())["results"]


def test_files_table_and_overlays_agree(tmp_path, capsys):
    files = ["--output", "new/r.json", "--csv", "r.csv", "--overlays", "maps", "--num_examples", "2"]
    assert binding(*VIT, "--probes", ",".join(PROBES), "--seeds", "2", *files) == 0
    content = json.loads(Path("new/r.json").read_text())
    assert {"versions", "hardware", "command", "git_revision", "data", "training"} <= set(content)
    rows = content["results"]
    expected = [(seed, layer, probe) for seed in (0, 1) for layer in range(3) for probe in PROBES]
    assert [(row["seed"], row["layer"], row["probe"]) for row in rows] == expected
    assert [row["depth"] for row in rows[:12:4]] == pytest.approx([1 / 3, 2 / 3, 1])
    assert {row["num_parameters"] for row in rows if row["probe"] == "quadratic"} == {4 * 64 + 1}
    assert {row["num_pairs"] for row in rows} == {4 * 16 * 15 // 2}
    assert len({row["share_different"] for row in rows}) == 1
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert row["foreground_num_pairs"] < row["num_pairs"]
    assert [(model["seed"], model["num_train"], model["num_val"]) for model in content["models"]] == [
        (0, 8, 4),
        (1, 8, 4),
    ]
    # Each seed has its own random weights.
    assert len({model["weights_hash"] for model in content["models"]}) == 2
    with Path("r.csv").open() as file:
        assert [float(row["auc"]) for row in csv.DictReader(file)] == [row["auc"] for row in rows]

    printed = capsys.readouterr().out
    for probe in PROBES:
        means = [sum(r["accuracy"] for r in rows if (r["layer"], r["probe"]) == (n, probe)) / 2 for n in range(3)]
        (line,) = [line for line in printed.splitlines() if line.startswith(f"│ {probe} ")]
        assert f"{100 * max(means):.2f} ±" in line
        assert f" {means.index(max(means))} " in line
    with Image.open("maps/test_vit.png") as sheet:
        # Columns: image, object, three layers. Rows: captions, two scenes.
        assert sheet.size == (6 + 5 * (128 + 6), 6 + 26 + 2 * (128 + 6))
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"new/r.json", "r.csv", "maps/test_vit.png"}


def test_interventions_do_not_change_the_probes(capsys):
    assert binding(*VIT, "--probes", "quadratic,class,identity", "--output", "plain.json") == 0
    capsys.readouterr()
    options = ["--interventions.layers", "0,1", "--interventions.shuffle", "0,1", "--interventions.inject", "0,0.5"]
    assert binding(*VIT, "--probes", "quadratic", *options, "--output", "r.json") == 0
    assert results("r.json") == results("plain.json")
    content = json.loads(Path("r.json").read_text())
    rows = content["interventions"]
    assert len(rows) == 1 + 2 * 4 * 2
    miou = {(r["layer"], r["change"], r["amount"], r["subspace"]): r["semantic_miou"] for r in rows}
    instance = {(r["layer"], r["change"], r["amount"], r["subspace"]): r["instance_miou"] for r in rows}
    plain = (None, "none", 0.0, "–")
    for (layer, change, amount, subspace), value in miou.items():
        if amount == 0:
            assert value == miou[plain]
            assert instance[layer, change, amount, subspace] == instance[plain]
    assert len(set(miou.values()) | set(instance.values())) > 4
    assert [row["layer"] for row in content["attention"]] == [0, 1]
    assert all(-1 <= row["correlation"] <= 1 for row in content["attention"])
    printed = capsys.readouterr().out
    assert "shuffle 1" in printed
    assert f"{content['attention'][0]['correlation']:.3f}" in printed


def test_control_evaluates_the_architecture_with_random_weights(checkpoint):
    files = ["--output", "r.json", "--plot", "depth.svg", "--overlays", "maps", "--num_examples", "1"]
    assert binding("--checkpoint", checkpoint, "--control", "random", "--probes", "linear,dot", *files) == 0
    content = json.loads(Path("r.json").read_text())
    models = content["models"]
    assert [(model["checkpoint"], model["weights"]) for model in models] == [
        (str(checkpoint), "average"),
        (None, "random"),
    ]
    assert models[0]["weights_hash"] != models[1]["weights_hash"]
    assert [model["preprocessing"]["mean"][0] for model in models] == [0.5, 0.5]
    rates = [[row["auc"] for row in content["results"] if row["weights"] == model["weights"]] for model in models]
    assert len(rates[0]) == len(rates[1]) == 2 * 5
    assert rates[0] != rates[1]
    # The last stage has a single patch, and no pairs.
    assert [row["num_pairs"] for row in content["results"][:10]][-2:] == [0, 0]
    assert {path.name for path in Path("maps").iterdir()} == {"test_resnet.png", "test_resnet-random.png"}
    assert Path("depth.svg").read_text().count("<!-- test_resnet (") == 2


def test_run_is_reproducible():
    for name in ("a", "b"):
        assert binding(*VIT, "--training.patches", "7", "--layers=-1,0", "--output", f"{name}.json") == 0
    assert results("a.json") == results("b.json")
    assert [row["layer"] for row in results("a.json")[::7]] == [0, 2]
    assert {row["num_pairs"] for row in results("a.json")} == {4 * 21}


@pytest.mark.slow
def test_coco_scenes_are_probed(coco_panoptic_root):
    options = ["--data.name", "coco_panoptic", "--data.root", coco_panoptic_root, "--data.limit", "16"]
    assert binding(*VIT, *options, "--output", "r.json") == 0
    assert {row["num_pairs"] > 0 for row in results("r.json")} == {True}


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--probes", "quadratic,liner"], 1, "no probe is named 'liner'; did you mean linear?"),
        (["--probes", ","], 2, "--probes: not of type list[str]: give at least one value"),
        (["--layers", "first"], 2, "'first' is not 'all' or an integer; separate several values by commas"),
        (["--layers", "0,3"], 1, "model 'test_vit' has no layer 3; there are 0 to 2"),
        (["--seeds", "0"], 2, "--seeds must be at least 1, got 0"),
        (["--control", "random"], 2, "give --pretrained or --checkpoint FILE"),
        (["--model", "test_vit,tst_vit"], 1, "unknown model 'tst_vit'"),
        (["--overlays", "maps", "--probes", "cosine,linear"], 2, "name one of quadratic, quadratic_full, diagonal"),
        (["--plot", "depth.txt"], 1, "its suffix must be one of .png, .pdf, .svg"),
        (["--training.patches", "1"], 2, "--training.patches must be at least 2, got 1"),
        (["--interventions.layers", "3"], 1, "must be among those that are probed, 0, 1, 2; got 3"),
        (["--interventions.shuffle", "2"], 2, "--interventions.shuffle must be at least 0 and at most 1, got 2"),
        (
            ["--interventions.layers", "0", "--training.rank", "63"],
            1,
            "--training.rank 63 leaves nothing out of test_vit's width 64",
        ),
        (["--interventions.layers", "0", "--model", "test_convnext"], 1, "test_convnext is no ViT"),
        (["--data.name", "coco_panoptic", "--data.root", "nowhere"], 1, "no such data folder: nowhere"),
        (["--model_kwargs", '{"in_chans": 1, "img_size": 32}'], 1, "test_vit takes images of 1 channels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_end_in_one_line(capsys, options, status, says):
    defaults = {"--model": "test_vit", "--model_kwargs": json.dumps(KWARGS)}
    if "test_convnext" in options:
        defaults["--model_kwargs"] = "{}"
    given = [word for name, value in defaults.items() if name not in options for word in (name, value)]
    assert binding(*given, *options) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert says in lines[0]


def test_option_that_only_a_config_gives_is_named_with_its_line(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("model: test_vit\npretrained: true\n")
    assert binding("--config", config, "--checkpoint", "f.safetensors") == 2
    assert f"give one of them (--pretrained: {config}, line 2)" in capsys.readouterr().err
    assert binding("--config", config, "--checkpoint", "f.safetensors", "--pretrained") == 2
    assert capsys.readouterr().err.endswith("give one of them\n")
