"""Folders for timm and the Hugging Face hub."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from tests.export.conftest import NARROW_NAT, Save
from visionattn.cli import evaluate
from visionattn.cli.errors import run
from visionattn.cli.export import main
from visionattn.evaluation import load_model
from visionattn.training import describe_model, load_checkpoint
from visionattn.training.checkpoints import loading

FIVE = {"input_size": (5, 32, 32), "mean": (0.5,) * 5, "std": (0.5,) * 5}
VIT = {"depth": 3, "embed_dim": 24, "num_heads": 2}
SEQUENCE = {"input_size": (1, 5, 6), "mean": (0.5,), "std": (0.5,), "sequence": "permuted", "permutation_seed": 7}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "nat": ("nat_pico", {"model_kwargs": NARROW_NAT}),
    "halo-rectangle": ("halo_pico", {"preprocessing": {"input_size": (3, 48, 32)}}),
    "dcal": ("dcal_vit_pico", {"model_kwargs": VIT, "task": "fine_grained"}),
    "reid": ("nat_pico", {"model_kwargs": NARROW_NAT, "num_classes": 0, "names": ["ann", "bob"], "task": "reid"}),
    "mae": ("vit_pico_patch4_32", {"num_classes": 0, "task": "mae"}),
    "slots": ("slot_cnn_pico", {"num_classes": 0, "task": "object_discovery"}),
    "slot-vit": ("slot_vit_pico_patch4_32", {"model_kwargs": VIT}),
    "sequence": ("terminator_1d_pico", {"model_kwargs": {"img_size": 30, "in_chans": 1}, "preprocessing": SEQUENCE}),
}


def export(*words: object) -> None:
    assert run(main, ["hub", *map(str, words)]) == 0


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(main, ["hub", *map(str, words)]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(("model", "options"), KINDS.values(), ids=KINDS)
def test_timm_loads_the_same_model(model: str, options: dict[str, Any], save: Save, tmp_path: Path) -> None:
    path, folder = save(model, **options), tmp_path / "hub"
    export("--checkpoint", path, "--output", folder)
    own, spec = load_checkpoint(path)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    channels, height, width = spec.preprocessing["input_size"]
    size = (channels, 1, height * width) if "sequence" in spec.preprocessing else (channels, height, width)
    x = torch.randn(2, *size)
    with torch.no_grad():
        assert torch.equal(loaded(x), own(x))
        features = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()(x)
        expected = own.forward_intermediates(x, intermediates_only=True)
        assert torch.equal(features[-1], expected[-1])
    config = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in timm.data.resolve_model_data_config(loaded).items()
    }
    assert config["input_size"] == list(size)
    for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        assert config[key] == spec.preprocessing[key]
    # Class names are for outputs; identities that trained the features are not outputs.
    names = loaded.pretrained_cfg.get("label_names")
    assert names == (spec.class_names if spec.num_classes else None)


def test_evaluation_gives_the_same_accuracy_and_names(digits_checkpoint: Path, tmp_path: Path) -> None:
    export("--checkpoint", digits_checkpoint, "--output", tmp_path / "hub")
    results = []
    for source in (
        ["--checkpoint", str(digits_checkpoint)],
        ["--model", f"local-dir:{tmp_path / 'hub'}", "--pretrained", "--data.name", "digits"],
    ):
        files = ["--output", str(tmp_path / "r.json"), "--per_class", str(tmp_path / "r.csv")]
        assert run(evaluate.main, ["classify", *source, "--device", "cpu", "--data.num_workers", "0", *files]) == 0
        result = json.loads((tmp_path / "r.json").read_text())
        results.append((result["top1"], result["top5"], (tmp_path / "r.csv").read_text()))
    assert results[0] == results[1]


def test_folder_of_0_1_0_loads(save: Save, tmp_path: Path) -> None:
    """That version left the number of classes in the model's arguments, as timm writes it."""
    export("--checkpoint", save("nat_pico", model_kwargs=NARROW_NAT), "--output", tmp_path / "hub")
    name, path = f"local-dir:{tmp_path / 'hub'}", tmp_path / "hub" / "config.json"
    config = json.loads(path.read_text())
    assert "num_classes" not in config["model_args"], "transformers takes it for a second number"
    now = load_model(name)
    path.write_text(json.dumps({**config, "model_args": {**config["model_args"], "num_classes": 3}}))
    before = load_model(name)
    assert now.spec == before.spec
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(timm.create_model(name, pretrained=True).eval()(x), now.model(x))
        assert torch.equal(before.model(x), now.model(x))


def test_architecture_with_a_number_of_classes_of_its_own_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own_resnet(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        return timm.models.model_entrypoint("resnet_pico")(pretrained, **{"num_classes": 9, **kwargs})

    registry = timm.models._registry
    monkeypatch.setitem(registry._model_entrypoints, "own_resnet", own_resnet)
    export("--model", "own_resnet", "--model_kwargs", '{"num_classes": 4}', "--output", tmp_path / "hub")
    assert timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).num_classes == 4


@pytest.mark.parametrize("several", [True, False])
def test_exported_model_says_whether_images_have_several_labels(
    several: bool, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = save("nat_pico", model_kwargs=NARROW_NAT, multi_label=several), tmp_path / "hub"
    export("--checkpoint", path, "--output", folder)
    name = f"local-dir:{folder}"
    assert load_model(name).spec.multi_label is several
    model = timm.create_model(name, pretrained=True)
    assert not describe_model(model, name, pretrained=False).multi_label, "random weights have learnt no labels"
    assert not describe_model(timm.create_model(name, num_classes=7), name, pretrained=True).multi_label, "a new head"

    def fetch(repository: str, file: str, revision: str | None) -> str:
        assert (repository, revision) == ("me/mine", "v1")
        return str(folder / file)

    monkeypatch.setattr(loading, "hf_hub_download", fetch)
    assert describe_model(model, "hf-hub:me/mine@v1", pretrained=True).multi_label is several


def test_weights_are_saved_in_the_requested_dtype(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save("nat_pico", model_kwargs=NARROW_NAT)
    export("--checkpoint", path, "--output", tmp_path / "a")
    export("--checkpoint", path, "--output", tmp_path / "b", "--weights", "raw", "--dtype", "float16")
    average, raw = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    modes = {file.stat().st_mode for file in (tmp_path / "a").iterdir()}
    assert len(modes) == 1, "who may read the card may read the weights"
    for name, value in average.items():
        torch.testing.assert_close(raw[name], (value / 2).half())
    loaded = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert "(raw)" in capsys.readouterr().out
    cards = [(tmp_path / name / "README.md").read_text() for name in "ab"]
    assert "| Weights | exponential moving average, float32 |" in cards[0]
    assert "| Weights | as trained, not the moving average, float16 |" in cards[1]
    # The score is the average's.
    assert "62.50%" in cards[0]
    assert "62.50%" not in cards[1]
    assert "model-index" not in cards[1]


def write_run(checkpoint: Path) -> None:
    """Write the files of a run beside a checkpoint of 90 updates."""
    folder = checkpoint.parent.parent
    (folder / "metrics.csv").write_text(
        "epoch,step,train_loss,val_top1,val_loss\n1,59,,0.5,1.2\n2,80,0.9,,\n2,89,,0.7512346,0.8\n"
    )
    hardware = {"device": "cpu", "name": "A processor", "threads": 2}
    (folder / "summary.json").write_text(json.dumps({"train_seconds": 90.0, "hardware": hardware}))
    options: dict[str, Any] = {
        "task": "classification",
        "seed_everything": 3,
        "runs": "/home/ann/runs",
        "model": {"name": "nat_pico", "lr": 0.01, "checkpoint_path": "/home/ann/start.ckpt", "agc": None},
        "data": {
            "name": "folder",
            "root": "/home/ann/images",
            "list": "/home/ann/list.txt",
            "batch_size": 8,
            "mean": None,
        },
        "trainer": {"max_epochs": 5, "default_root_dir": "/home/ann", "logger": None},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(options))


def test_card_shows_the_facts_of_the_run(save: Save, tmp_path: Path) -> None:
    path = save("nat_pico", model_kwargs=NARROW_NAT)
    write_run(path)
    export("--checkpoint", path, "--output", tmp_path / "hub", "--license", "cc-by-4.0")
    card = (tmp_path / "hub" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["library_name"], about["pipeline_tag"], about["license"]) == (
        "timm",
        "image-classification",
        "cc-by-4.0",
    )
    (result,) = about["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.751235, "name": "top-1"}]
    assert "| top-1 | 75.12% |" in text
    assert "Epochs: 3; updates: 90. The whole training took 1.5 min on A processor, threads: 2." in text
    assert "| License | cc-by-4.0 |" in text
    recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    assert recipe == {
        "task": "classification",
        "seed_everything": 3,
        "model": {"name": "nat_pico", "lr": 0.01},
        "data": {"name": "folder", "batch_size": 8},
        "trainer": {"max_epochs": 5},
    }
    everything = card + (tmp_path / "hub" / "config.json").read_text()
    assert "/home" not in everything
    assert str(tmp_path) not in everything
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["pretrained_cfg"]["license"] == "cc-by-4.0"


def test_card_shows_an_evaluation(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save("nat_pico", model_kwargs=NARROW_NAT)
    found = {"model": "nat_pico.cifar10", "split": "test", "num_images": 1200, "top1": 0.5, "top5": 0.75}
    (tmp_path / "test.json").write_text(json.dumps(found))
    words = ("--checkpoint", path, "--output", tmp_path / "hub", "--evaluation", tmp_path / "test.json")
    export(*words, "--data_name", "some images")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "measured top-1 50.00%, top-5 75.00% on 1,200 images: `test`." in card
    assert "| Trained on | some images |" in card
    (tmp_path / "test.json").write_text(json.dumps({**found, "model": "halo_pico"}))
    assert "is of halo_pico, not nat_pico: name what eval.py classify --output wrote" in refusal(capsys, *words)
    (tmp_path / "test.json").write_text(json.dumps({"model": "nat_pico", "split": None, "num_images": 3, "top1": 1}))
    assert "lacks top5: name what" in refusal(capsys, *words)
    (tmp_path / "test.json").write_text("[1, 2]")
    assert "cannot be read: name what" in refusal(capsys, *words)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("nat_pico", {"model_kwargs": NARROW_NAT}, ""),
        (*KINDS["reid"], "the model has no classes: AutoModel gives its features"),
        (*KINDS["sequence"], "its image processors do not read images as sequences of pixels"),
        (
            "nat_pico",
            {"model_kwargs": {**NARROW_NAT, "in_chans": 5}, "preprocessing": FIVE},
            "its pipelines read images of 3 channels, not 5",
        ),
        (
            "nat_pico",
            {"model_kwargs": NARROW_NAT, "preprocessing": {"own_transform": "mine.make"}},
            "its image processors do not know the transform mine.make",
        ),
    ],
)
def test_export_says_what_transformers_cannot_do(
    model: str,
    options: dict[str, Any],
    reason: str,
    save: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, folder = save(model, **options), tmp_path / "hub"
    capsys.readouterr()
    export("--checkpoint", path, "--output", folder)
    last = capsys.readouterr().out.splitlines()[-1]
    card = (folder / "README.md").read_text()
    if reason:
        assert last == f"not for pipelines of transformers: {reason}"
        assert f"Not for pipelines of transformers: {reason}." in card
    else:
        assert last == f'or: transformers.pipeline("image-classification", "{folder}")'
        assert 'pipeline("image-classification", model="FOLDER")' in card


def test_card_marks_missing_facts(save: Save, tmp_path: Path) -> None:
    path = save("nat_pico", model_kwargs=NARROW_NAT)
    plain = tmp_path / "plain.pth"
    torch.save(load_checkpoint(path)[0].state_dict(), plain)
    kwargs = json.dumps(NARROW_NAT)
    export("--checkpoint", plain, "--model", "nat_pico", "--model_kwargs", kwargs, "--output", tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in front
    assert "model-index" not in front
    assert "Accuracy: not recorded." in card
    assert "Epochs: not recorded; updates: not recorded. Recipe: not recorded." in card
    assert "| Trained on | not recorded |" in card
    assert "| License | not stated |" in card
    assert "%" not in card


def test_class_names_are_never_markup(save: Save, tmp_path: Path) -> None:
    names = ["../../outside", "```\n# Heading\n---", '<script>alert("x")</script>']
    path, folder = save("nat_pico", names=names, model_kwargs=NARROW_NAT), tmp_path / "hub"
    export("--checkpoint", path, "--output", folder)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg["label_names"] == names
    card = (folder / "README.md").read_text()
    assert not re.search(r"^# Heading", card, re.MULTILINE)
    block = re.findall(r"^(````+)json\n(.*)\n\1$", card, re.MULTILINE)
    assert json.loads(block[0][1]) == names


def test_folder_with_other_content_is_not_overwritten(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = save("nat_pico", model_kwargs=NARROW_NAT), tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "theirs"}')
    (folder / "notes.txt").write_text("notes")
    words = ("--checkpoint", path, "--output", folder)
    assert f"{folder} is not empty and holds no earlier export" in refusal(capsys, *words)
    assert (folder / "config.json").read_text() == '{"architecture": "theirs"}'
    export(*words, "--overwrite")
    assert json.loads((folder / "config.json").read_text())["architecture"] == "nat_pico"
    assert (folder / "notes.txt").read_text() == "notes"
    export(*words, "--weights", "raw")  # an earlier export may be
    assert "not the moving average" in (folder / "README.md").read_text()
    (tmp_path / "file").write_text("")
    assert "name a place elsewhere" in refusal(capsys, "--checkpoint", path, "--output", tmp_path / "file")


def test_failed_write_keeps_the_earlier_export(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = save("nat_pico", model_kwargs=NARROW_NAT), tmp_path / "hub"
    export("--checkpoint", path, "--output", folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(*args: object) -> str:
        raise OSError(28, "No space left on device", "README.md")

    monkeypatch.setattr("visionattn.export.hub.write_card", fail)
    assert "No space left" in refusal(capsys, "--checkpoint", path, "--output", folder, "--weights", "raw")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_missing_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to export: give --checkpoint FILE" in refusal(capsys, "--output", tmp_path / "hub")
    assert "missing: --output" in refusal(capsys, "--model", "nat_pico")
    assert "no checkpoint at" in refusal(capsys, "--checkpoint", tmp_path / "no.ckpt", "--output", tmp_path / "hub")


def test_packaged_weights_keep_their_class_names(tmp_path: Path) -> None:
    export("--model", "resnet_pico", "--pretrained", "--output", tmp_path / "hub")
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["label_names"][3] == "cat"
    export("--model", "resnet_pico", "--output", tmp_path / "random")
    config = json.loads((tmp_path / "random" / "config.json").read_text())
    assert not config.get("label_names")
    assert not config["pretrained_cfg"].get("label_names")


def test_card_says_that_weights_come_from_a_plain_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm.create_model("resnet_pico").state_dict(), tmp_path / "own.pth")
    export("--model", "resnet_pico", "--checkpoint", tmp_path / "own.pth", "--output", tmp_path / "hub")
    assert "float32 weights (file)" in capsys.readouterr().out
    assert "from a file of weights, float32" in (tmp_path / "hub" / "README.md").read_text()
