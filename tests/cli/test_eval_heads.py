"""eval.py heads in this process: a small ViT with packaged weights, on drawn images and synthetic scenes."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from visionattn import load_model
from visionattn.__main__ import dispatch
from visionattn.analysis import head_layers
from visionattn.analysis.head_images import open_head_images
from visionattn.analysis.head_study import HeadStudy
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.evaluation import compare_speed
from visionattn.evaluation.as_trained import ImageOptions
from visionattn.probing.export import export_probe
from visionattn.probing.frozen import FrozenBackbone
from visionattn.probing.heads import create_head
from visionattn.probing.protocols.results import HeadResult

MODEL = "vit_nano_patch4_32.cifar10"
CLASSES = ("airplane", "automobile", "bird")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work beside a folder of images in class folders, with names of the model's classes; time a few steps only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("visionattn.cli.heads.compare_speed", partial(compare_speed, seconds=0.0, batch_size=2))
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(CLASSES * 4):
        path = Path("images/val", name, f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)


def heads(*argv: str | Path) -> int:
    fixed = ["--device", "cpu", "--data.num_workers", "0", "--data.root", "images"]
    return run(main, ["heads", *fixed, *map(str, argv)])


def study(*argv: str | Path, output: str = "h.json", checkpoint: str = "") -> dict[str, Any]:
    model = ["--checkpoint", checkpoint] if checkpoint else ["--model", MODEL, "--pretrained"]
    assert heads(*model, "--output", output, *argv) == 0
    return json.loads(Path(output).read_text())


def test_table_files_and_figures_agree(capsys: pytest.CaptureFixture[str]) -> None:
    scenes = ["--scenes.name", "synthetic", "--scenes.val_length", "4", "--scenes.num_workers", "0"]
    files = ["--csv", "h.csv", "--plot", "maps.png", "--sheet", "sheet.png", "--curves", "curves.png"]
    found = study(*scenes, *files, "--prune", "d_loss,distance:desc", "--points", "3", "--random_orders", "2")
    rows = found["heads"]
    assert [(row["layer"], row["head"]) for row in rows] == [(layer, head) for layer in range(6) for head in range(3)]
    with Path("h.csv").open() as file:
        assert [float(row["d_loss"]) for row in csv.DictReader(file)] == [row["d_loss"] for row in rows]
    assert found["num_images"] == 12
    assert {row["distance"] is not None and 0 < row["distance"] < 7 for row in rows} == {True}
    assert all(row["binding"] > 0 and 0 <= row["prefix_mass"] <= 1 for row in rows)
    assert {name: len(curve["points"]) for name, curve in found["curves"].items()} == dict.fromkeys(
        ("d_loss", "distance:desc", "random 0", "random 1"), 3
    )
    by_distance = sorted(rows, key=lambda row: -row["distance"])
    assert found["curves"]["distance:desc"]["order"] == [f"{row['layer']}.{row['head']}" for row in by_distance]
    assert all(
        curve["points"][0]["loss"] == pytest.approx(found["baseline"]["loss"]) for curve in found["curves"].values()
    )
    for name in ("maps.png", "sheet.png", "curves.png"):
        assert Image.open(name).size[0] > 300
    printed = capsys.readouterr().out
    assert f"rank correlation of d_loss between two halves of the images: {found['split_half']:.2f}" in printed
    assert f"{rows[0]['d_loss']:.4f} ± {rows[0]['d_loss_se']:.4f}" in printed


def test_two_runs_are_equal_and_leave_no_other_files() -> None:
    first, second = study("--layers", "0,-1"), study("--layers", "0,-1", output="i.json")
    assert first["heads"] == second["heads"]
    assert {row["layer"] for row in first["heads"]} == {0, 5}
    assert sorted(path.name for path in Path().iterdir()) == ["h.json", "i.json", "images"]


def test_removed_heads_are_those_of_a_zeroed_projection(capsys: pytest.CaptureFixture[str]) -> None:
    found = study("--layers", "3", "--ablation", "zero", "--ablate", "3.1,4.0")
    loaded = load_model(MODEL)
    for layer, head in ((3, 1), (4, 0)):
        with torch.no_grad():
            head_layers(loaded.model)[layer].proj.weight[:, 32 * head : 32 * (head + 1)] = 0
    images = sorted(Path("images").rglob("*.png"))
    transform, names = loaded.transform(), loaded.spec.class_names
    with torch.no_grad():
        logits = loaded.model(torch.stack([transform(Image.open(path)) for path in images]))
    targets = torch.tensor([names.index(path.parent.name) for path in images])
    assert found["removed"]["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, targets).item(), abs=1e-6
    )
    assert found["removed"]["heads"] == ["3.1", "4.0"]
    assert "3.1, 4.0" in capsys.readouterr().out


def test_kept_model_computes_what_the_ablated_one_did(capsys: pytest.CaptureFixture[str]) -> None:
    found = study("--layers", "1", "--cut", "1.0,1.2", "--keep", "small/kept.safetensors")["pruned"]
    assert found["difference"] < 1e-5
    small = load_model("small/kept.safetensors")
    assert small.spec.model_kwargs["cut_heads"] == {"blocks.1": [0, 2]}
    assert found["speed"]["cut"]["params_m"] < found["speed"]["full"]["params_m"]
    assert "2 heads cut: 1.0, 1.2" in capsys.readouterr().out
    fixed = ["--data.root", "images", "--data.num_workers", "0"]
    assert run(main, ["classify", "--checkpoint", "small/kept.safetensors", *fixed]) == 0


def test_whole_and_smaller_model_are_measured_in_the_same_precision() -> None:
    found = study("--layers", "1", "--precision", "bf16-mixed", "--cut", "1.0", "--keep", "k.safetensors")["pruned"]
    assert found["difference"] < 1e-2
    for outcome in ("loss", "top1"):
        assert found[outcome] - found["whole"][outcome] == pytest.approx(found[f"d_{outcome}"], abs=1e-9)


def test_kept_model_is_compared_with_the_inference_that_was_studied() -> None:
    model = ("--model", "dcal_vit_nano.cifar10", "--pretrained", "--inference", "sa")
    assert heads(*model, "--layers", "1", "--cut", "1.0", "--keep", "k.safetensors", "--output", "h.json") == 0
    assert json.loads(Path("h.json").read_text())["pruned"]["difference"] < 1e-5


def test_kept_model_of_a_folder_loads_with_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(dispatch, ["export", "hub", "--model", MODEL, "--pretrained", "--output", "hub"]) == 0
    model = ("--model", "local-dir:hub")
    assert heads(*model, "--pretrained", "--layers", "1", "--cut", "1.0", "--keep", "~/k.safetensors") == 0
    file = str(tmp_path / "k.safetensors")
    assert f"--checkpoint {file} --model local-dir:hub of other commands" in capsys.readouterr().out
    fixed = ["--data.root", "images", "--data.num_workers", "0"]
    assert run(main, ["classify", "--checkpoint", file, *model, *fixed]) == 0


def test_number_of_heads_to_cut_follows_the_order() -> None:
    found = study(
        "--layers",
        "1",
        "--prune",
        "d_loss",
        "--points",
        "2",
        "--random_orders",
        "0",
        "--cut",
        "1",
        "--keep",
        "k.safetensors",
    )
    least = min(found["heads"], key=lambda row: row["d_loss"])
    assert found["pruned"]["heads"] == [f"{least['layer']}.{least['head']}"]


def test_model_without_classes_is_judged_by_its_features(capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = ["--model_kwargs", '{"num_classes": 0}']
    found = study(*kwargs, "--layers", "0", "--prune", "d_features", "--points", "2", "--random_orders", "1")
    assert found["baseline"] == {}
    assert all(0 < row["d_features"] < 1 and "direct" not in row for row in found["heads"])
    assert found["curves"]["d_features"]["points"][0]["d_features"] == 0
    assert "change of features" in capsys.readouterr().out


@pytest.mark.parametrize("step", ["effects", "curves"])
def test_killed_run_resumes_with_the_same_results(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionattn.analysis import patching

    words = ["--layers", "2,3", "--data.batch_size", "4", "--prune", "d_loss", "--points", "3", "--random_orders", "1"]
    measured = patching.measure_outcomes
    calls, last = 0, 0

    def killed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        return measured(*args)

    monkeypatch.setattr(patching, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(patching, "measure_outcomes", killed)
    whole = study(*words, output="whole.json")
    total, calls, last = calls, 0, {"effects": 5, "curves": 30}[step]
    assert heads("--model", MODEL, "--pretrained", "--output", "h.json", *words) != 0
    assert Path(f"h.json.{step}.safetensors").exists()
    before = calls
    found = study(*words)
    assert found["heads"] == whole["heads"]
    assert found["curves"] == whole["curves"]
    assert calls - before == total - (before - 1)  # the pass that was interrupted is repeated, and no other one
    assert not list(Path().glob("h.json.*"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--layers", "6"], "--layers 6: there are attention layers 0 to 5"),
        (["--heads", "3"], "--heads 3: layer 0 has heads 0 to 2"),
        (["--ablate", "3.x"], "--ablate takes heads as LAYER.HEAD: 3.1,4.0, not '3.x'"),
        (["--ablate", "9.0"], "--ablate 9.0: there are attention layers 0 to 5"),
        (["--prune", "importance"], "--prune must be one of distance, distance_clipped, influence, "),
        (
            ["--prune", "d_loss:up"],
            "--prune d_loss:up: write d_loss for the lowest first, or d_loss:desc for the highest",
        ),
        (["--prune", "binding"], "--prune binding wants images with segments: give --scenes.root FOLDER"),
        (["--prune", "d_features"], "--prune d_features: vit_nano_patch4_32.cifar10 has classes; d_loss is the effect"),
        (["--curves", "c.png"], "--curves draws the curves of --prune: give scores"),
        (["--keep", "k.safetensors"], "--cut says which heads to cut, and --keep where to write the smaller model"),
        (["--keep", "k.pt", "--cut", "1"], "k.pt must end in .safetensors"),
        (["--cut", "19", "--keep", "k.safetensors"], "--cut must be at least 1 and at most 18, got 19"),
        (["--scenes.root", "nowhere"], "no such data folder: nowhere (--scenes.root)"),
        (["--plot", "p.txt"], "cannot write a figure to p.txt"),
    ],
)
def test_mistakes_end_with_one_line_before_the_work(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heads("--model", MODEL, "--pretrained", *argv) != 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {message}")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("model", "cut", "message"),
    [
        ("halo_pico.cifar10", "1", "HaloNet has no output projection after them"),
        ("dcal_vit_nano.cifar10", "1", "no such data folder: nowhere"),
        ("dcal_vit_nano.cifar10", "2,1.0", "DCAL's rollout wants a head in every layer"),
    ],
)
def test_heads_that_cannot_be_cut_are_refused_before_the_work(
    model: str, cut: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", model, "--pretrained", "--cut", cut, "--keep", "k.safetensors", "--data.root", "nowhere"]
    assert heads(*argv) == 1
    assert message in capsys.readouterr().err


def test_head_on_a_frozen_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    """Layers after the one that the head reads are not run: they have no scores, and no effect."""
    names = load_model(MODEL).spec.class_names
    backbone = FrozenBackbone(load_model(MODEL, model_kwargs={"num_classes": 0}).model, MODEL, [1])
    result = HeadResult("linear", {}, 0, 0.0, 0.0, None, None, 0.0, head=create_head("linear", 96, len(names)))
    export_probe(".", "probe", result, backbone, [1], names)
    found = study("--layers", "1,2", "--sheet", "sheet.png", checkpoint="probe.json")
    read, unread = found["heads"][:3], found["heads"][3:]
    assert all(row["distance"] > 0 and row["copy"] is not None and row["d_loss"] != 0 for row in read)
    assert all(row["distance"] is row["copy"] is None and row["d_loss"] == 0 for row in unread)
    capsys.readouterr()
    assert heads("--checkpoint", "probe.json", "--cut", "1", "--keep", "k.safetensors") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: probe.json is a head on a frozen backbone, which is not pruned")
    assert captured.out == ""


def test_pruned_dcal_answers_with_the_same_branches() -> None:
    argv = ["--model", "dcal_vit_nano.cifar10", "--pretrained", "--inference", "sa", "--layers", "1"]
    assert heads(*argv, "--cut", "1.0", "--keep", "k.safetensors", "--output", "h.json") == 0
    found = json.loads(Path("h.json").read_text())
    assert found["pruned"]["difference"] < 1e-5
    assert found["pruned"]["d_loss"] == pytest.approx(found["heads"][0]["d_loss"], abs=1e-5)


@pytest.mark.parametrize(("model", "score"), [("nat_pico.cifar10", "prefix_mass"), ("halo_pico.cifar10", "direct")])
def test_score_that_no_head_has_gives_no_order(model: str, score: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert heads("--model", model, "--pretrained", "--layers", "0", "--prune", score) == 1
    captured = capsys.readouterr()
    (message,) = captured.err.splitlines()
    assert message == f"error: no head of {model} has a score {score}: heads cannot be ordered by it"
    assert ("largest effect" in captured.out) == (score == "direct")  # scores of attention are known before the effects


def test_unfinished_work_is_of_one_model_and_one_choice_of_classes() -> None:
    def identity(class_map: dict[str, str], **model_kwargs: Any) -> str:
        loaded = load_model(MODEL, model_kwargs=model_kwargs)
        options = ImageOptions(root="images", num_workers=0, class_map=class_map)
        images = open_head_images(loaded, options, 4, torch.device("cpu"))
        study = HeadStudy(loaded, images, head_layers(loaded.model), [(0, 0)], state=Path("h.json"))
        unfinished = study._unfinished("effects")
        assert unfinished is not None
        return unfinished.identity

    swapped = {"airplane": "bird", "bird": "airplane"}
    assert identity({}) == identity({})
    assert len({identity({}), identity(swapped), identity({}, pool_include_prefix=True)}) == 3


def test_several_labels_per_image_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(MODEL)
    spec = replace(loaded.spec, multi_label=True)
    weights = {f"model.{name}": value for name, value in loaded.model.state_dict().items()}
    torch.save({"state_dict": weights, "visionattn": spec.to_dict()}, "labels.ckpt")
    assert heads("--checkpoint", "labels.ckpt") == 1
    assert capsys.readouterr().err.startswith("error: labels.ckpt has several labels for an image")
    features = ["--model", spec.model, "--model_kwargs", '{"num_classes": 0}']
    assert heads("--checkpoint", "labels.ckpt", *features, "--layers", "0") == 0


def test_model_of_a_folder_is_pruned() -> None:
    loaded = load_model(MODEL)
    Path("hub").mkdir()
    config = {"architecture": "vit_nano_patch4_32", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    config["pretrained_cfg"]["label_names"] = loaded.spec.class_names  # type: ignore[index]
    Path("hub/config.json").write_text(json.dumps(config))
    save_file(loaded.model.state_dict(), "hub/model.safetensors")
    argv = ["--model", "local-dir:hub", "--pretrained", "--layers", "1", "--cut", "1.0", "--keep", "k.safetensors"]
    assert heads(*argv, "--output", "h.json") == 0
    assert json.loads(Path("h.json").read_text())["pruned"]["difference"] < 1e-5


def test_sheet_has_the_chosen_heads() -> None:
    study("--layers", "0", "--sheet", "all.png")
    study("--layers", "0", "--heads", "1", "--sheet", "one.png")
    assert Image.open("one.png").size[0] < Image.open("all.png").size[0]


def test_scenes_that_cannot_be_used_name_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    Path("scenes/val/images").mkdir(parents=True)
    Path("scenes/val/instances").mkdir()
    for number in range(2):
        Image.new("RGB", (32, 32)).save(f"scenes/val/images/{number}.png")
        Image.new("L", (32, 32), number).save(f"scenes/val/instances/{number}.png")
    Path("scenes/val/images/1.png").write_bytes(b"no image")
    scenes = ["--layers", "0", "--scenes.root", "scenes", "--scenes.num_workers", "0"]
    assert heads("--model", MODEL, "--pretrained", *scenes) == 1
    error = capsys.readouterr().err
    assert "1.png: not an image that Pillow knows; repair or remove it, or pass --scenes.on_error skip" in error
    study(*scenes, "--scenes.on_error", "skip")
    assert "unreadable scenes left out: 1" in capsys.readouterr().out
    wide = ["--model", MODEL, "--pretrained", "--model_kwargs", '{"img_size": [32, 64]}']
    assert heads(*wide, *scenes) == 1
    assert "not square ones: choose --scenes.img_size N" in capsys.readouterr().err


def test_model_without_heads_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert heads("--model", "resnet_pico.cifar10", "--pretrained") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: resnet_pico.cifar10 has no attention heads to study")


def test_unreadable_image_is_named_or_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    Path("images/val/bird/2.png").write_bytes(b"no image")
    assert heads("--model", MODEL, "--pretrained", "--layers", "0") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: cannot read images/val/bird/2.png: not an image that Pillow knows; repair or remove it"
    )
    found = study("--layers", "0", "--data.on_error", "skip")
    assert found["num_images"] == 11
    printed = capsys.readouterr().out
    assert "unreadable images left out: 1" in printed
    assert f"{MODEL} on 11 images" in printed
    for path in Path("images").rglob("*.png"):
        path.write_bytes(b"no image")
    for options in ([], ["--sheet", "sheet.png"]):
        assert heads("--model", MODEL, "--pretrained", "--data.on_error", "skip", *options) == 1
        assert capsys.readouterr().err.startswith("error: there are no images to ")


def test_numbers_that_are_not_finite_name_the_image(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(MODEL)
    with torch.no_grad():
        loaded.model.get_parameter("blocks.5.mlp.fc2.weight").mul_(1e38)
    torch.save(loaded.model.state_dict(), "large.pt")
    argv = [
        "--checkpoint",
        "large.pt",
        "--model",
        MODEL.partition(".")[0],
        "--data.class_map",
        json.dumps(dict(zip(CLASSES, "012", strict=True))),
    ]
    assert heads(*argv, "--layers", "0") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the network gives no finite numbers for images/val/airplane/0.png")


def test_cues_want_a_model_of_dominoes(dominoes_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert heads("--model", MODEL, "--pretrained", "--cues", "--data.root", dominoes_root) == 1
    expected = f"error: {MODEL} does not have the classes of dominoes, 0 airplane, 1 automobile, …: train a model with "
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize(
    "argv",
    [
        ["--prune", "d_loss"],
        ["--curves", "c.png"],
        ["--cut", "1"],
        ["--ablation", "zero"],
        ["--precision", "bf16-mixed"],
        ["--data.img_size", "32"],
        ["--data.name", "folder"],
        ["--data.split", "val"],
        ["--scenes.root", "scenes"],
    ],
    ids=" ".join,
)
def test_cues_refuse_options_that_they_do_not_use(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert heads("--model", MODEL, "--pretrained", "--cues", *argv) == 2
    expected = f"error: --cues has images and measures of its own: leave out {argv[0]}\n"
    assert capsys.readouterr().err == expected


def test_cues_take_options_of_data_and_of_random_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr("visionattn.cli.heads.study_cues", lambda *args, **options: taken.update(options))
    data = ["--data.name", "dominoes", "--data.download", "true", "--data.batch_size", "7"]
    options = ["--random_orders", "2", "--seed", "3", "--layers", "1", "--heads", "0,2"]
    assert heads("--model", MODEL, "--pretrained", "--cues", *data, *options) == 0
    assert (taken["download"], taken["batch_size"]) == (True, 7)
    assert (taken["orders"], taken["seed"], taken["heads"]) == (2, 3, [(1, 0), (1, 2)])
