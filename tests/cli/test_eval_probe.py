"""``eval.py probe`` in this process, on small images."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import visionattn
from tests.cli.probing import FAST, KWARGS, VIT, error_line, probe, results
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.data import ImageClassificationData
from visionattn.io import save_weights
from visionattn.probing.frozen import FrozenBackbone
from visionattn.probing.protocols.joint import JointTraining
from visionattn.training import load_checkpoint

OTHER_CACHE = ["--features.cache", "other"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder of the test's own, where the default cache lies."""
    monkeypatch.chdir(tmp_path)


def accuracy(classifier: torch.nn.Module, preprocessing: dict[str, Any], root: Path) -> float:
    """Return top-1 on val, computed one image at a time."""
    data = ImageClassificationData(
        root=str(root),
        img_size=preprocessing["input_size"][1],
        batch_size=1,
        num_workers=0,
        **{key: preprocessing[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")},
    )
    data.setup("validate")
    with torch.no_grad():
        batches = (batch.to(torch.device("cpu")) for batch in data.val_dataloader())
        right = [classifier(batch.image).argmax().item() == batch.target.item() for batch in batches]
    return sum(right) / len(right)


def test_table_files_and_exported_heads_agree(tmp_path, colour_folder, capsys):
    heads = ["linear", "knn", "ep_8", "ridge", "aim", "logistic"]
    output, table, folder = tmp_path / "new" / "r.json", tmp_path / "r.csv", tmp_path / "heads"
    files = ["--output", output, "--csv", table, "--export", folder]
    options = ["--head_options", '{"ep_8": {"d_out": 2}, "aim": {"tokens": "all"}}']
    assert probe(*VIT, "--data.root", colour_folder, "--heads", ",".join(heads), *options, *files) == 0

    content = json.loads(output.read_text())
    rows = content["results"]
    assert [row["head"] for row in rows] == heads
    assert {"versions", "hardware", "command", "git_revision", "data", "features", "training"} <= set(content)
    (model,) = content["models"]
    assert (model["num_train"], model["num_val"], model["num_classes"], model["tokens_cached"]) == (12, 9, 3, True)
    by_head = {row["head"]: row for row in rows}
    dim = 64
    assert by_head["linear"]["num_parameters"] == by_head["ridge"]["num_parameters"] == 3 * dim + 3
    assert by_head["ep_8"]["num_parameters"] == dim * dim // 2 + 8 * dim + 3 * dim // 2 + 3
    assert by_head["knn"]["num_parameters"] == 0
    for row in rows:
        assert row["selected_on"] == "held_out"
        assert row["top5"] == 1.0
        assert (row["dataset"], row["num_train"], row["seed"], row["layers"]) == ("folder", 12, 0, ["last"])
    with table.open() as file:
        assert [(row["head"], float(row["top1"])) for row in csv.DictReader(file)] == [
            (row["head"], row["top1"]) for row in rows
        ]
    printed = capsys.readouterr().out
    for row in rows:
        assert f"{row['top1']:.2%}" in printed
        if row["head"] == "knn":
            continue
        classifier = visionattn.load_probe(folder / f"test_vit-{row['head']}.json")
        assert classifier.class_names == ["blue", "green", "red"]
        assert accuracy(classifier, classifier.preprocessing, colour_folder) == row["top1"]
    assert len(list(folder.glob("backbone-*"))) == 1
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("source", ["overlay", "folder"])
def test_exported_head_on_local_weights_loads_from_another_folder(source, tmp_path, colour_folder, monkeypatch):
    model = timm.create_model("test_vit", **KWARGS)
    if source == "overlay":
        torch.save(model.state_dict(), "own.pth")
        options = {**KWARGS, "pretrained_cfg_overlay": {"file": "own.pth"}}
        backbone = ["--model", "test_vit", "--model_kwargs", json.dumps(options)]
    else:
        save_for_hf(model, "own", model_config={"model_args": KWARGS}, safe_serialization=True)
        backbone = ["--model", "local-dir:own"]
    argv = [*backbone, "--pretrained", "--data.root", colour_folder, "--data.img_size", "32", "--heads", "linear"]
    assert probe(*argv, "--export", "heads", "--output", "r.json") == 0
    (head,) = Path("heads").glob("*-linear.json")
    content = json.loads(head.read_text())["backbone"]
    assert content["model"] == "test_vit"
    assert "own" not in json.dumps(content)
    shutil.move("heads", tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    classifier = visionattn.load_probe(tmp_path / "elsewhere" / head.name)
    assert torch.equal(classifier.backbone.model.state_dict()["cls_token"], model.state_dict()["cls_token"])


def test_rerun_needs_no_backbone_and_no_training(tmp_path, colour_folder, monkeypatch):
    argv = [*VIT, "--data.root", colour_folder, "--heads", "linear,ep_4,knn", "--output"]
    assert probe(*argv, tmp_path / "a.json") == 0

    def broken(*args, **kwargs):
        raise AssertionError("called")

    monkeypatch.setattr(FrozenBackbone, "forward", broken)
    # Heads of another seed learn from the same features.
    assert probe(*argv, tmp_path / "b.json", "--training.seed", "1") == 0
    monkeypatch.setattr(JointTraining, "train_epoch", broken)
    assert probe(*argv, tmp_path / "c.json", "--data.root", str(colour_folder)) == 0
    assert results(tmp_path / "a.json") == results(tmp_path / "c.json") != results(tmp_path / "b.json")


def test_interrupted_run_keeps_its_results_and_resumes(tmp_path, colour_folder, monkeypatch):
    argv = [*VIT, "--data.root", colour_folder, "--heads", "ep_4,knn", "--training.epochs", "4", "--output"]
    assert probe(*argv, tmp_path / "whole.json", *OTHER_CACHE) == 0

    epochs: list[int] = []
    train_epoch = JointTraining.train_epoch

    def interrupted(self, *args):
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return counted(self, *args)

    def counted(self, *args):
        epochs.append(self.epoch)
        return train_epoch(self, *args)

    monkeypatch.setattr(JointTraining, "train_epoch", interrupted)
    assert probe(*argv, tmp_path / "r.json") == 130
    assert [row["head"] for row in results(tmp_path / "r.json")] == ["knn"]
    monkeypatch.setattr(JointTraining, "train_epoch", counted)
    assert probe(*argv, tmp_path / "r.json") == 0
    assert epochs == [0, 1, 2, 3]
    assert results(tmp_path / "r.json") == results(tmp_path / "whole.json")


def test_cache_is_rebuilt_for_other_images_of_the_same_names(tmp_path, colour_folder):
    argv = [*VIT, "--data.root", colour_folder, "--heads", "ridge,knn", "--output"]
    assert probe(*argv, tmp_path / "a.json") == 0
    assert probe(*argv, tmp_path / "b.json") == 0
    for image in (colour_folder / "val" / "red").iterdir():
        Image.new("RGB", (48, 48), (30, 60, 220)).save(image)
    with pytest.warns(UserWarning, match=r"test_vit-validation-\w+ is stale \(it was made with other images\)"):
        assert probe(*argv, tmp_path / "c.json") == 0
    assert results(tmp_path / "a.json") == results(tmp_path / "b.json")
    # A third of val is blue now and still called red.
    assert [row["top1"] for row in results(tmp_path / "c.json")] == [pytest.approx(2 / 3)] * 2


def write_mnist(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the files of MNIST, equal for train and test; existing files keep their dates."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte"
            header = np.array([0x0800 + values.ndim, *values.shape], ">u4").tobytes()
            before = path.stat() if path.exists() else None
            path.write_bytes(header + values.astype(np.uint8).tobytes())
            if before is not None:
                assert path.stat().st_size == before.st_size
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("protocol", ["held_out", "paper"])
def test_cache_keeps_features_for_edited_labels_and_is_rebuilt_for_edited_images(tmp_path, monkeypatch, protocol):
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28))
    labels = np.arange(30) % 3
    images[labels == 1] //= 4
    images[labels == 2, :14] = 0
    argv = ["--data.name", "mnist", "--data.root", tmp_path, "--data.img_size", "32", "--heads", "ridge,knn,ep_4"]
    training = FAST if protocol == "held_out" else [*FAST[:-2], "--training.protocol", "paper"]

    def found(name: str, *more: str | Path) -> list[dict[str, Any]]:
        command = [*VIT, *argv, *training, "--output", tmp_path / name, *more]
        assert run(main, ["probe", *map(str, command)]) == 0
        return results(tmp_path / name)

    write_mnist(tmp_path, images, labels)
    before = found("a.json")
    write_mnist(tmp_path, images, relabelled := np.roll(labels, 7) // 2)
    with monkeypatch.context() as patch:
        patch.setattr(FrozenBackbone, "forward", lambda *_: pytest.fail("features do not depend on labels"))
        after = found("b.json")
    assert before != after == found("fresh.json", *OTHER_CACHE)
    if protocol == "paper":
        return
    write_mnist(tmp_path, 255 - images[::-1], relabelled)
    with pytest.warns(UserWarning, match=r"is stale \(it was made with other images\)"):
        edited = found("c.json")
    assert after != edited == found("fresh.json", "--features.cache", "third")


def test_cache_is_rebuilt_for_a_rewritten_checkpoint(tmp_path, colour_folder):
    def found(name: str, *more: str | Path) -> list[dict[str, Any]]:
        options = ["--checkpoint", "w.safetensors", "--heads", "ridge,ep_4", "--output", tmp_path / name]
        assert probe(*VIT, "--data.root", colour_folder, *options, *more) == 0
        return results(tmp_path / name)

    for seed in (0, 1):
        torch.manual_seed(seed)
        save_weights(timm.create_model("test_vit", **KWARGS).state_dict(), Path("w.safetensors"))
        os.utime("w.safetensors", (0, 0))
        if not seed:
            before = found("a.json")
    with pytest.warns(UserWarning, match=r"is stale \(it was made with other weights\)"):
        after = found("b.json")
    assert before != after == found("fresh.json", *OTHER_CACHE)


def test_val_is_not_used_for_choices_outside_the_paper_protocol(tmp_path, colour_folder):
    argv = [*VIT, "--data.root", colour_folder, "--heads", "linear,ep_4,knn,ridge,logistic", "--output"]
    assert probe(*argv, tmp_path / "a.json") == 0
    val = colour_folder / "val"
    for old, new in (("red", "kept"), ("blue", "red"), ("kept", "blue")):
        (val / old).rename(val / new)
    assert probe(*argv, tmp_path / "b.json", *OTHER_CACHE) == 0
    chosen = ("head", "options", "lr", "epoch", "held_out_accuracy")
    for before, after in zip(results(tmp_path / "a.json"), results(tmp_path / "b.json"), strict=True):
        assert {key: before[key] for key in chosen} == {key: after[key] for key in chosen}

    paper = ["--training.protocol", "paper", "--data.root", colour_folder, "--heads", "ep_4,knn"]
    options = ["--device", "cpu", "--data.num_workers", "0", "--training.epochs", "2", "--output", tmp_path / "p.json"]
    assert run(main, ["probe", *map(str, [*VIT, *paper, *options])]) == 0
    for row in results(tmp_path / "p.json"):
        assert (row["protocol"], row["selected_on"], row["held_out_accuracy"]) == ("paper", "val", None)
        assert row["optimizer"] in ("lars", None)


def test_tokens_beyond_the_budget_come_from_the_backbone_in_every_epoch(tmp_path, colour_folder):
    argv = [*VIT, "--data.root", colour_folder, "--heads", "ep_4,linear", "--output"]
    assert probe(*argv, tmp_path / "cached.json") == 0
    assert probe(*argv, tmp_path / "online.json", "--features.token_budget_gb", "0") == 0
    assert not json.loads((tmp_path / "online.json").read_text())["models"][0]["tokens_cached"]
    views = ["--features.views", "2"]
    assert probe(*argv, tmp_path / "views.json", *views) == 0
    for options in ([], views):
        assert probe(*argv, tmp_path / "anew.json", *options, "--features.token_budget_gb", "0", *OTHER_CACHE) == 0
    assert len(list(Path("other/training").iterdir())) == 2, "heads that see views are trained anew"
    assert results(tmp_path / "online.json") == results(tmp_path / "cached.json")
    folders = {path.parent.name for path in (tmp_path / "runs").rglob("*.tokens.npy")}
    assert folders == {"view0", "view1"}


def test_layers_are_probed_side_by_side_or_separately(tmp_path, colour_folder, capsys):
    argv = [*VIT, "--data.root", colour_folder, "--heads", "linear,ep_4", "--features.layers", "0,last"]
    files = ["--output", tmp_path / "r.json", "--export", "heads", "--attention", "maps", "--num_examples", "4"]
    assert probe(*argv, *files) == 0
    rows = results(tmp_path / "r.json")
    assert [row["layers"] for row in rows] == [[0, "last"]] * 2
    assert rows[0]["num_parameters"] == 3 * 128 + 3
    classifier = visionattn.load_probe("heads/test_vit-layers-0+last-ep_4.safetensors")
    assert accuracy(classifier, classifier.preprocessing, colour_folder) == rows[1]["top1"]
    assert classifier.attention(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 16)
    with Image.open("maps/test_vit-layers-0+last-ep_4.png") as sheet:
        # Columns: the image, all maps, each of four clusters. Rows: captions, four images.
        assert sheet.size == (6 + 6 * (112 + 6), 6 + 26 + 4 * (112 + 6))
    capsys.readouterr()

    assert probe(*argv, "--features.each_layer", "--output", tmp_path / "r.json") == 0
    found = [(row["layers"], row["head"]) for row in results(tmp_path / "r.json")]
    assert found == [([0], "linear"), ([0], "ep_4"), (["last"], "linear"), (["last"], "ep_4")]
    assert "layers" in capsys.readouterr().out


def test_checkpoint_preprocessing_and_backbone_of_exported_head_are_restored(
    tmp_path, checkpoint, colour_folder, capsys
):
    argv = ["--checkpoint", checkpoint, "--data.root", colour_folder, "--heads", "ridge,gap", "--export", "heads"]
    assert probe(*argv, "--output", tmp_path / "r.json") == 0
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["models"][0]["preprocessing"]["mean"] == [0.5] * 3
    assert content["results"][0]["weights"] == "average"
    model, _ = load_checkpoint(checkpoint)
    model.reset_classifier(0)
    (tmp_path / "heads" / f"backbone-{content['models'][0]['weights_hash']}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="backbone="):
        visionattn.load_probe("heads/test_resnet-gap.json")
    classifier = visionattn.load_probe("heads/test_resnet-gap.json", backbone=model)
    assert accuracy(classifier, classifier.preprocessing, colour_folder) == content["results"][1]["top1"]

    raw, _ = load_checkpoint(checkpoint, "raw")
    raw.reset_classifier(0)
    with pytest.raises(ValueError, match="test_resnet has weights"):
        visionattn.load_probe("heads/test_resnet-gap.json", backbone=raw)
    file = tmp_path / "heads" / "test_resnet-gap.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        visionattn.load_probe(file, backbone=model)


def test_models_are_all_checked_before_any_extraction(colour_folder, monkeypatch, capsys):
    monkeypatch.setattr(FrozenBackbone, "forward", lambda *_: pytest.fail("extracted"))
    argv = ["--model", "test_vit,test_resnet", "--data.root", colour_folder, "--data.img_size", "160"]
    assert probe(*argv, "--features.layers", "5", "--heads", "knn") == 1
    assert "model 'test_resnet' has no layer 5; there are 0 to 4" in error_line(capsys)


def test_unreadable_images_are_named_or_left_out(tmp_path, colour_folder, capsys):
    broken = colour_folder / "train" / "green" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    argv = [*VIT, "--data.root", colour_folder, "--heads", "ridge", "--output", tmp_path / "r.json"]
    assert probe(*argv) == 1
    assert str(broken) in error_line(capsys)
    assert probe(*argv, "--data.on_error", "skip") == 0
    (model,) = json.loads((tmp_path / "r.json").read_text())["models"]
    assert (model["num_train"], model["num_unreadable"], model["unreadable"]) == (11, 1, [str(broken)])
    assert str(broken) in capsys.readouterr().out
    # The cache made without the image does not hide it.
    assert probe(*argv) == 1
    assert str(broken) in error_line(capsys)


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--heads", "linear,ep32"], 2, "no head is named 'ep32'; did you mean ep_32?"),
        (["--heads", ","], 2, "--heads: not of type list[str]: give at least one value"),
        (["--heads", "ep_7"], 1, "--heads ep_7 on test_vit: number of queries must divide"),
        (["--heads", "cls", "--model", "test_convnext"], 1, "--heads cls on test_convnext: tokens 'cls' want a class"),
        (["--heads", "ep_4", "--head_options", '{"ep_4": {"d_ot": 2}}'], 1, "did you mean d_out?"),
        (
            ["--heads", "knn", "--head_options", '{"knn": {"k": 2}}'],
            2,
            "head_options.knn: knn takes no options, got k",
        ),
        (["--model", "tst_vit"], 1, "unknown model 'tst_vit': did you mean test_vit"),
        (["--model", "test_vit,nat_tinny"], 1, "unknown model 'nat_tinny'"),
        (["--model", "test_vit,nat_tiny", "--checkpoint", "x.ckpt"], 2, "--checkpoint is of one model"),
        (["--checkpoint", "gone.ckpt"], 1, "no checkpoint at gone.ckpt"),
        (["--data.root", "nowhere"], 1, "no such data folder: nowhere"),
        (["--features.layers", "0,2"], 1, "model 'test_vit' has no layer 2; there are 0 to 1, and 'last'"),
        (
            ["--features.layers", "frist"],
            2,
            "--features.layers: not of type list[int | 'last']: 'frist' is not",
        ),
        (
            ["--model", "nat_pico", "--heads", "ep_4", "--features.layers", "0,1"],
            1,
            "layers with 64, 256 tokens cannot",
        ),
        (["--features.views", "0"], 2, "--features.views must be at least 1, got 0"),
        (["--features.cache", "{root}/train/red/0.jpg"], 1, "cannot write {root}/train/red/0.jpg"),
        (["--training.lrs", "fast"], 2, "--training.lrs: not of type list[float]: 'fast' is not a number; separate"),
        (["--training.lrs", "-1"], 1, "must be above 0; got -1"),
        (["--training.batch_size", "0"], 1, "batch_size must be at least 2; got 0"),
        (["--training.protocol", "paper"], 2, "paper has its own lrs: leave out --training.lrs"),
        (["--training.shots", "5,0"], 2, "--training.shots must be at least 1, got 0"),
        (["--training.repeats", "0"], 2, "--training.repeats must be at least 1, got 0"),
        (["--data.img_size", "0"], 2, "--data.img_size must be at least 1 and at most 16384, got 0"),
        (["--training.shots", "9"], 1, "9 images per class: class 0 has 4"),
        (["--training.shots", "2", "--export", "heads"], 2, "leave out --training.shots"),
        (["--heads", "linear,knn", "--attention", "maps"], 1, "none of the heads linear, knn has attention"),
        (["--head_options", '{"aim": {}}'], 2, "--head_options.aim is for none of the heads linear, knn, ep_32"),
        (["--leaderboard", "r.json"], 2, "--leaderboard is a command of its own: eval.py leaderboard --results FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_end_in_one_line_that_names_them(colour_folder, capsys, options, status, says):
    options = [option.replace("{root}", str(colour_folder)) for option in options]
    defaults = {"--model": "test_vit", "--data.root": str(colour_folder), "--model_kwargs": json.dumps(KWARGS)}
    if {"test_convnext", "nat_pico"} & set(options):
        defaults["--model_kwargs"] = "{}"
    given = [word for name, value in defaults.items() if name not in options for word in (name, value)]
    if "--checkpoint" in options and "--model" not in options:
        given = given[2:]
    assert probe(*given, *options) == status
    assert says.format(root=colour_folder) in error_line(capsys)


def test_missing_model_is_an_error(capsys):
    assert probe() == 2
    assert "nothing to evaluate" in error_line(capsys)
