"""Weights that come with the package."""

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg

from visionattn.models import _weights
from visionattn.models._weights import CHECKSUMS, FOLDER, LARGE, check, pack, unpack
from visionattn.training import describe_model

REPOSITORY = Path(__file__).parents[2]
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
each = pytest.mark.parametrize("name", NAMES)


def test_tags_all_have_their_weights() -> None:
    families = {name.partition("_")[0] for name in NAMES}
    assert families == {"nat", "dinat", "halo", "terminator", "dcal", "vit", "resnet"}
    assert set(timm.list_models("*.cifar10", include_tags=True)) == set(NAMES)


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 12e6


@each
def test_timm_loads_them_without_a_network(name: str) -> None:
    model = timm.create_model(name, pretrained=True).eval()
    packed = load_file(FOLDER / name / "model.safetensors")
    rounded = {key for key, value in packed.items() if value.dtype == torch.int8}
    assert rounded
    held = unpack(packed)
    half = timm.create_model(name).half().state_dict()
    assert {key: value.dtype for key, value in held.items() if key not in rounded} == {
        key: value.dtype for key, value in half.items() if key not in rounded
    }
    wide = [value for key, value in held.items() if value.dtype == torch.float32 and key not in rounded]
    if name == "terminator_pico.cifar10":  # what makes its kernels has frequencies beyond float16
        assert max(value.abs().max() for value in wide) > torch.finfo(torch.float16).max
    else:
        assert not wide
    assert model.state_dict().keys() == held.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, held[key].to(value.dtype)), key
    assert torch.equal(
        timm.create_model(name.partition(".")[0], pretrained=True).eval()(torch.ones(1, 3, 32, 32)),
        model(torch.ones(1, 3, 32, 32)),
    )
    assert timm.create_model(name, pretrained=True, num_classes=3)(torch.ones(2, 3, 32, 32)).shape == (2, 3)


@each
def test_pretrained_cfgs_equal_the_trained_ones(name: str) -> None:
    said = get_pretrained_cfg(name).to_dict()
    trained = json.loads((FOLDER / name / "config.json").read_text())["pretrained_cfg"]
    for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes", "license"):
        assert json.loads(json.dumps(said[key])) == trained[key], key


@each
def test_cards_match_the_table(name: str) -> None:
    with (REPOSITORY / "results" / "cifar10.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if f"{row['model']}.cifar10" == name]
    row = min(rows, key=lambda row: int(row["seed"]))
    card = (FOLDER / name / "README.md").read_text()
    assert f"top-1 {float(row['test_top1']):.2f}%, top-5 {float(row['test_top5']):.2f}% on 10,000 images" in card
    for words in ("CIFAR-10", "| License | apache-2.0 |", "holdout_per_class: 500", "## Limits"):
        assert words in card


@each
def test_files_have_the_checksums_that_are_noted(name: str) -> None:
    assert f"  {name}/model.safetensors\n" in CHECKSUMS.read_text()
    check(FOLDER / name / "model.safetensors")


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[0]
    path = tmp_path / name / "model.safetensors"
    path.parent.mkdir()
    held = load_file(FOLDER / name / "model.safetensors")
    key = next(iter(held))
    held[key].view(-1)[0] += 1
    save_file(held, path)
    (tmp_path / "SHA256SUMS").write_text(CHECKSUMS.read_text())
    monkeypatch.setattr(_weights, "FOLDER", tmp_path)
    monkeypatch.setattr(_weights, "CHECKSUMS", tmp_path / "SHA256SUMS")
    refused(name, path, "is damaged")
    path.write_bytes(path.read_bytes()[:5000])
    refused(name, path, "is damaged")
    path.unlink()
    refused(name, path, "is missing")


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_packed_weights_are_near_and_held_exactly_by_float16(size: float) -> None:
    torch.manual_seed(0)
    kernel = size * torch.randn(64, 16, 3, 3) * torch.logspace(-2, 0, 64)[:, None, None, None]
    kernel[3] = 0
    vector = torch.randn(LARGE)
    packed = pack({"kernel": kernel, "vector": vector})
    assert {key: value.dtype for key, value in packed.items()} == {
        "kernel": torch.int8,
        "kernel:scale": torch.float16,
    }
    found = unpack({"vector": vector, **packed})
    assert found["vector"] is vector
    step = kernel.abs().amax((1, 2, 3), keepdim=True) / 127
    assert (found["kernel"] - kernel).abs().le(0.57 * step + 2.0**-22).all(), "half a step that is up to 1/8 too wide"
    assert torch.equal(found["kernel"].half().float(), found["kernel"])
    assert not pack({"above": 1e9 / size * kernel, "below": 1e-9 / size * kernel, "small": kernel[:4]})


def refused(name: str, path: Path, says: str) -> None:
    with pytest.raises(ValueError, match=rf"model.safetensors {says}.*install visionattn again"):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})


@each
def test_timm_knows_their_classes(name: str) -> None:
    model = timm.create_model(name, pretrained=True)
    assert (
        list(model.pretrained_cfg["label_names"])
        == json.loads((FOLDER / name / "config.json").read_text())["label_names"]
    )
    assert describe_model(model, name, pretrained=True).class_names[3] == "cat"


def test_their_classes_are_of_no_other_weights() -> None:
    overlay = {"file": str(FOLDER / "nat_pico.cifar10" / "model.safetensors")}
    for options in (
        {},
        {"pretrained": True, "num_classes": 3},
        {"pretrained": True, "pretrained_cfg_overlay": overlay},
    ):
        model = timm.create_model("nat_pico", **options)
        assert describe_model(model, "nat_pico", **options).class_names == []


def test_terminator_refuses_other_channels_for_its_weights() -> None:
    with pytest.raises(
        ValueError, match="weights of terminator_pico are for images of 3 channels, got in_chans 1"
    ) as error:
        timm.create_model("terminator_pico", pretrained=True, in_chans=1)
    assert "\n" not in str(error.value)
    assert timm.create_model("terminator_pico", in_chans=1).in_chans == 1
