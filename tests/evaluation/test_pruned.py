"""Pruned models: equal to masked ones, the same after they were saved and loaded, and taken by every command."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import visionattn
from visionattn.__main__ import dispatch
from visionattn.analysis.heads import change_heads, head_layers, replace_heads
from visionattn.cli.errors import run
from visionattn.errors import UsageError, UserError
from visionattn.evaluation.pruned import check_place, compare_speed, prune, save_pruned
from visionattn.evaluation.source import LoadedModel, Origin
from visionattn.export.run import RunRecord
from visionattn.training import create_model, describe_model, describe_weights, load_beside, weights_origin

NAME = "vit_nano_patch4_32.cifar10"
HEADS = {"blocks.1": [2], "blocks.4": [0, 1]}


@pytest.fixture(scope="module")
def full() -> LoadedModel:
    return visionattn.load_model(NAME)


@pytest.fixture
def pruned(full: LoadedModel, tmp_path: Path) -> Path:
    path = tmp_path / "new" / "pruned.safetensors"
    save_pruned(prune(full, HEADS), path)
    return path


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def answer(loaded: LoadedModel) -> Tensor:
    with torch.no_grad():
        return loaded.model(images())


def test_pruned_copy_answers_as_the_masked_model(full: LoadedModel) -> None:
    layers = {layer.name: layer for layer in head_layers(full.model)}
    means = {name: torch.randn(3, 32) for name in HEADS}
    with change_heads({layers[name]: replace_heads(numbers, means[name]) for name, numbers in HEADS.items()}):
        expected = answer(full)
    before = answer(full)
    torch.testing.assert_close(answer(prune(full, HEADS, means)), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(answer(full), before)
    assert full.spec.model_kwargs == {}


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        (NAME, HEADS),
        (NAME, {"blocks.0": [0, 1, 2]}),
        ("nat_pico.cifar10", {"levels.2.blocks.1": [1]}),
        ("dcal_vit_nano.cifar10", {"blocks.3": [0]}),
        ("beit_base_patch16_224", {"blocks.1": [0]}),
    ],
)
def test_saved_model_is_the_same_after_loading(name: str, heads: dict[str, list[int]], tmp_path: Path) -> None:
    if name.startswith("beit"):
        options: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 2}
        model = create_model(name, **options).eval()
        whole = LoadedModel(model, describe_model(model, name, **options), Origin(None, "random"))
    else:
        whole = visionattn.load_model(name)
    attention: Any = {name: whole.model.get_submodule(f"{name}.attn") for name in heads}
    means = {name: torch.randn(x.num_heads, x.proj.in_features // x.num_heads) for name, x in attention.items()}
    cut = prune(whole, heads, means)
    save_pruned(cut, tmp_path / "pruned.safetensors")
    loaded = visionattn.load_model(tmp_path / "pruned.safetensors")
    assert torch.equal(answer(loaded), answer(cut))
    assert loaded.spec.to_dict() == cut.spec.to_dict()
    assert loaded.spec.model_kwargs["cut_heads"] == heads
    assert loaded.origin.weights == "file"
    written = json.loads((tmp_path / "pruned.safetensors.json").read_text())
    assert written == {"weights": "pruned.safetensors", **cut.spec.to_dict()}


def test_pruned_model_can_be_pruned_again(full: LoadedModel, pruned: Path, tmp_path: Path) -> None:
    again = prune(visionattn.load_model(pruned), {"blocks.1": [1], "blocks.4": [0], "blocks.5": [0], "blocks.3": []})
    wanted = {"blocks.1": [1, 2], "blocks.4": [0, 1, 2], "blocks.5": [0]}
    assert again.spec.model_kwargs["cut_heads"] == wanted
    torch.testing.assert_close(answer(again), answer(prune(full, wanted)))
    save_pruned(again, tmp_path / "again.safetensors")
    assert torch.equal(answer(visionattn.load_model(tmp_path / "again.safetensors")), answer(again))


def test_pruned_model_loads_without_the_files_that_it_came_from(full: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(full.model.state_dict(), file)
    kwargs = {"pretrained_cfg_overlay": {"file": str(file)}, "cut_heads": None}
    cut = prune(visionattn.load_model(NAME, pretrained=True, model_kwargs=kwargs), HEADS)
    file.unlink()
    save_pruned(cut, tmp_path / "pruned.safetensors")
    assert torch.equal(answer(visionattn.load_model(tmp_path / "pruned.safetensors")), answer(prune(full, HEADS)))


def test_file_describes_its_weights_as_a_checkpoint_does(full: LoadedModel, pruned: Path) -> None:
    described = describe_weights(NAME, False, pruned, {})
    assert described is not None
    assert described.to_dict() == prune(full, HEADS).spec.to_dict()
    assert weights_origin(False, {}, pruned) == "file"
    assert RunRecord.of(pruned) == RunRecord()
    with pytest.raises(ValueError, match=r"pruned\.safetensors holds a model alone: give a checkpoint"):
        load_beside(pruned, "slots.")


def test_commands_take_the_file_alone(
    full: LoadedModel, pruned: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for color, animal in (("red", "cat"), ("green", "dog"), ("blue", "ship")):
        for split in ("train", "val"):
            (colour_folder / split / color).rename(colour_folder / split / animal)
    root, common = str(colour_folder), ["--data.num_workers", "0", "--device", "cpu"]
    words = ["--data.name", "folder", "--data.root", root, *common, "--output", "c.json"]
    assert run(dispatch, ["classify", "--checkpoint", str(pruned), *words]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["num_images"] == 9
    words = ["--num_workers", "0", "--device", "cpu", "--output", "p.json"]
    assert run(dispatch, ["predict", str(pruned), str(colour_folder / "val"), *words]) == 0
    expected = prune(full, HEADS).predict(sorted((colour_folder / "val").rglob("*.jpg")))
    found = json.loads((tmp_path / "p.json").read_text())
    assert [row["class"] for row in found] == [prediction.classes[0] for prediction in expected]
    assert [row["probability"] for row in found] == pytest.approx([one.probabilities[0] for one in expected], abs=1e-5)
    assert run(dispatch, ["embed", str(pruned), str(colour_folder), "--output", "e.npz", "--num_workers", "0"]) == 0


def test_fine_tuning_keeps_the_cut(pruned: Path, colour_folder: Path, tmp_path: Path) -> None:
    options = {"runs": str(tmp_path / "runs"), "data.num_workers": 0, "trainer.accelerator": "cpu"}
    result = visionattn.finetune(colour_folder, pruned, options, epochs=1, quiet=True)
    loaded = visionattn.load_model(str(result.best_checkpoint))
    assert loaded.spec.model_kwargs["cut_heads"] == HEADS
    assert loaded.spec.class_names == ["blue", "green", "red"]
    attention: Any = loaded.model.get_submodule("blocks.4.attn")
    assert attention.qkv.weight.shape == (96, 96)
    started = load_file(pruned)["blocks.4.attn.qkv.weight"]
    assert 0 < (attention.qkv.weight - started).abs().max() < 0.1


def test_head_on_frozen_features_loads_with_its_pruned_backbone(
    pruned: Path, colour_folder: Path, tmp_path: Path
) -> None:
    words = ["--checkpoint", str(pruned), "--output", str(tmp_path / "head"), "--device", "cpu"]
    assert run(dispatch, ["linear", str(colour_folder), *words]) == 0
    loaded = visionattn.load_model(tmp_path / "head" / "head.json")
    assert answer(loaded).shape == (2, 3)
    with pytest.raises(UserError, match=r"head\.json is a head on a frozen backbone, .* prune the backbone"):
        prune(loaded, {"backbone.model.blocks.0": [0]})


def test_hub_folder_of_a_cut_model_is_refused(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, ["export", "hub", "--checkpoint", str(pruned), "--output", str(tmp_path / "hub")]) == 2
    assert "has cut heads, which timm cannot build: export onnx or program instead" in capsys.readouterr().err


def test_file_whose_description_is_damaged_is_refused(pruned: Path, tmp_path: Path) -> None:
    weights, path = load_file(pruned), tmp_path / "bad.safetensors"
    spec = json.loads(pruned.with_name("pruned.safetensors.json").read_text())
    for text, message in (
        ("{", "bad.safetensors does not describe its model in JSON"),
        ("[" * 100_000, "bad.safetensors does not describe its model in JSON"),
        ("[]", "description of its model is a list"),
        (
            json.dumps(spec | {"model_kwargs": {"cut_heads": {"blocks.1": "2"}}}),
            "cut_heads are lists of heads by block",
        ),
        (json.dumps(spec | {"model_kwargs": {"cut_heads": {"blocks.1": [1]}}}), "bad.safetensors does not fit"),
        (json.dumps(spec | {"model": "local-dir:x"}), "is not read because a file says so"),
    ):
        save_file(weights, path, {"visionattn": text})
        with pytest.raises(ValueError, match=message):
            visionattn.load_model(path)


def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pruned\.pt must end in \.safetensors"):
        check_place(tmp_path / "pruned.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*pruned\.safetensors: .*; name a place"):
        check_place(tmp_path / "file" / "pruned.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        check_place(tmp_path / "folder.safetensors")


def test_full_disk_is_one_line_and_leaves_the_old_file(
    full: LoadedModel, pruned: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    before = pruned.read_bytes()
    with (
        file_size_limit(100_000),
        pytest.raises(OSError, match=r"cannot write .*pruned\.safetensors: .*make room") as e,
    ):
        save_pruned(prune(full, {"blocks.0": [0]}), pruned)
    assert "\n" not in str(e.value)
    assert pruned.read_bytes() == before
    assert sorted(file.name for file in pruned.parent.iterdir()) == [pruned.name, f"{pruned.name}.json"]


def test_speeds_are_compared_in_pairs_of_steps(full: LoadedModel) -> None:
    shown: list[tuple[int, int | None]] = []

    class Shown:
        def __init__(self, *_: str) -> None: ...

        def __enter__(self) -> Callable[[int, int | None], object]:
            return lambda done, total: shown.append((done, total))

        def __exit__(self, *_: object) -> None: ...

    cut = prune(full, {f"blocks.{number}": [0, 1, 2] for number in range(6)})
    speed = compare_speed(full, cut, batch_size=16, device="cpu", seconds=0.2, progress=Shown)
    assert speed.pairs == len(shown) >= 5
    assert speed.ratio_quartiles[0] <= speed.ratio <= speed.ratio_quartiles[1]
    assert speed.full.params_m - speed.cut.params_m == pytest.approx(6 * (4 * 96 * 96 + 3 * 96) / 1e6)
    assert speed.full.gmacs is not None
    assert speed.cut.gmacs is not None
    assert speed.full.gmacs - speed.cut.gmacs == pytest.approx(6 * (4 * 65 * 96 * 96 + 2 * 65 * 65 * 96) / 1e9)
    assert json.loads(json.dumps(speed.to_dict()))["cut"]["images_per_second"] > 0
    assert next(full.model.parameters()).device.type == "cpu"
