"""Damaged, foreign and hostile files of weights: no code in them runs, and nothing wrong is used silently."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from visionattn.cli.errors import describe
from visionattn.training import ModelSpec, create_model, load_checkpoint
from visionattn.training.checkpoints.files import read_checkpoint
from visionattn.training.runs import RunFolder

Fails = Callable[..., str]
Reader = Callable[[Path], list[str]]

READERS = {
    "classify": ("classify", "--checkpoint"),
    "start from": ("fit", "--model.checkpoint_path"),
    "resume from": ("fit", "--ckpt_path"),
    "validate": ("validate", "--ckpt_path"),
}
"""All ways that a file of weights gets into a command."""


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, quick: tuple[str, ...]) -> Reader:
    """Return the command line that reads a file."""
    command, option = READERS[request.param]
    return lambda path: [command, *(quick if command == "fit" else ()), f"{option}={path}"]


def complaint(path: Path) -> str:
    """Return the error for a file that cannot be loaded, else an empty string."""
    try:
        read_checkpoint(path)
    except ValueError as error:
        return describe(error)
    return ""


class Payload:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_truncated_checkpoint_is_an_error(reader: Reader, digits_checkpoint: Path, fails: Fails) -> None:
    digits_checkpoint.write_bytes(digits_checkpoint.read_bytes()[:-1000])
    fails(*reader(digits_checkpoint), says=f"{digits_checkpoint} is not a checkpoint, or only part of one")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_checkpoint_truncated_at_any_byte_is_an_error(zipped: bool, checkpoint: Path, tmp_path: Path) -> None:
    torch.save(torch.load(checkpoint, weights_only=True), checkpoint, _use_new_zipfile_serialization=zipped)
    content, path = checkpoint.read_bytes(), tmp_path / "cut.ckpt"
    for length in [0, 1, *range(100, len(content), len(content) // 10), len(content) - 1]:
        path.write_bytes(content[:length])
        assert complaint(path) == f"{path} is not a checkpoint, or only part of one", length


def test_flipped_bit_in_the_weights_is_an_error(reader: Reader, digits_checkpoint: Path, fails: Fails) -> None:
    content = bytearray(digits_checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    digits_checkpoint.write_bytes(content)
    fails(*reader(digits_checkpoint), says=f"{digits_checkpoint} is damaged: its checksums do not match; copy it again")


def test_flipped_bit_anywhere_never_changes_the_loaded_weights(checkpoint: Path, tmp_path: Path) -> None:
    content, path, found = checkpoint.read_bytes(), tmp_path / "flipped.ckpt", 0
    whole = read_checkpoint(checkpoint)["state_dict"]
    places = range(0, len(content), len(content) // 60)
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        if complaint(path):
            found += 1
        else:  # padding between the tensors
            held = read_checkpoint(path)["state_dict"]
            assert all(torch.equal(value, held[name]) for name, value in whole.items())
    assert found > len(places) // 2


def test_pickled_code_is_not_run(reader: Reader, tmp_path: Path, fails: Fails) -> None:
    torch.save({"state_dict": {}, "hook": Payload(tmp_path / "ran")}, tmp_path / "bad.ckpt")
    fails(*reader(tmp_path / "bad.ckpt"), says=("bad.ckpt holds pickled code (", ".mkdir), which is never run"))
    assert not (tmp_path / "ran").exists()


def test_pickled_code_in_the_older_format_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save({"hook": Payload(tmp_path / "ran")}, path, _use_new_zipfile_serialization=False)
    assert "holds pickled code" in complaint(path)
    assert not (tmp_path / "ran").exists()


def test_folder_as_a_checkpoint_is_an_error(reader: Reader, tmp_path: Path, fails: Fails) -> None:
    *_, option = words = reader(tmp_path)
    status, says = (2, "no checkpoint at ") if option.startswith("--ckpt_path") else (1, "is a folder: name the ")
    fails(*words, says=(str(tmp_path), says), status=status)


def test_checkpoint_without_permission_is_an_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.chmod(0)
    if os.access(checkpoint, os.R_OK):  # root may
        monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(PermissionError) as error:
        load_checkpoint(checkpoint)
    assert describe(error.value) == f"{checkpoint}: Permission denied"


def refuse(path: Path, **options: Any) -> None:
    raise PermissionError(13, "Permission denied", str(path))


# safetensors


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(end: int, start: int = 0, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(safetensors(b"{not JSON"), id="a header that is no JSON"),
        pytest.param(safetensors([1, 2]), id="a header that is no table"),
        pytest.param(safetensors(entry(16), bytes(16), length=1 << 60), id="a header of 2^60 bytes"),
        pytest.param(safetensors(entry(16), bytes(8)), id="data that are cut short"),
        pytest.param(safetensors(entry(1 << 50), bytes(16)), id="a tensor that reaches beyond the file"),
        pytest.param(safetensors(entry(16, shape=(1 << 40,)), bytes(16)), id="a shape that does not fit its bytes"),
        pytest.param(safetensors(entry(0, start=16), bytes(16)), id="a tensor that ends before it begins"),
        pytest.param(safetensors(entry(16, dtype="F31"), bytes(16)), id="a type that there is not"),
        pytest.param(safetensors(entry(16), bytes(32)), id="bytes that no tensor claims"),
    ],
)
def test_safetensors_with_a_wrong_header_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    line = complaint(path)
    assert line.startswith(f"{path} is not a safetensors file, or only part of one: ")
    assert "\n" not in line


def test_truncated_safetensors_is_an_error(classifier: nn.Module, tmp_path: Path, fails: Fails) -> None:
    path = tmp_path / "x.safetensors"
    save_file(classifier.state_dict(), path)
    content = path.read_bytes()
    for length in (4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "x.safetensors is not a safetensors file, or only part of one" in complaint(path)
    fails("classify", "--model=test_resnet", f"--checkpoint={path}", says="x.safetensors is not a safetensors file")


# Whole files that do not fit


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the content of a checkpoint."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def as_of_a_run(path: Path) -> None:
    """Add the entries that Lightning's trainer needs."""
    rewrite(path, lambda content: content.update({"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0}))


def test_checkpoint_of_other_classes_is_an_error(
    digits_checkpoint: Path, colour_folder: Path, quick: tuple[str, ...], fails: Fails
) -> None:
    data = ("--data.name=folder", f"--data.root={colour_folder}")
    as_of_a_run(digits_checkpoint)
    says = "has classes blue, green, red, which the 10 classes trained on (0, 1, 2, …) do not include"
    fails("fit", *quick, *data, f"--ckpt_path={digits_checkpoint}", says=says)


def test_checkpoint_of_another_program_is_an_error(
    digits_checkpoint: Path, quick: tuple[str, ...], fails: Fails
) -> None:
    says = f"{digits_checkpoint} is not a checkpoint of train.py"
    fails("fit", *quick, f"--ckpt_path={digits_checkpoint}", says=says)
    as_of_a_run(digits_checkpoint)
    rewrite(digits_checkpoint, lambda content: content.pop("visionattn"))
    fails("fit", *quick, f"--ckpt_path={digits_checkpoint}", says=says)
    fails("classify", f"--checkpoint={digits_checkpoint}", says="does not say which model it holds")


def test_weights_under_another_prefix_are_an_error(digits_checkpoint: Path, fails: Fails) -> None:
    def rename(content: dict[str, Any]) -> None:
        weights: dict[str, Tensor] = content["state_dict"]
        content["state_dict"] = {f"backbone.{name.removeprefix('model.')}": value for name, value in weights.items()}

    says = (
        "does not fit test_resnet",
        "missing in the file, first conv1.",
        "unknown to the model, first backbone.conv1.",
    )
    fails("classify", f"--checkpoint={rewrite(digits_checkpoint, rename)}", says=says)


@pytest.mark.parametrize("reader", ["classify", "start from"], indirect=True)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_an_error(
    reader: Reader, value: float, digits_checkpoint: Path, fails: Fails
) -> None:
    rewrite(digits_checkpoint, lambda content: content["state_dict"]["model.fc.weight"][3, 7:8].fill_(value))
    says = f"{digits_checkpoint} holds weights that are not finite, first fc.weight: take an earlier checkpoint"
    fails(*reader(digits_checkpoint), says=says)


# What a checkpoint says about itself


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", 5),
        ("model_kwargs", "x"),
        ("num_classes", "many"),
        ("class_names", None),
        ("preprocessing", []),
        ("preprocessing", {"input_size": [3, -1, 32]}),
        ("preprocessing", {"input_size": [3, 32.5, 32]}),
    ],
)
def test_invalid_model_description_is_an_error(key: str, value: Any, checkpoint: Path) -> None:
    rewrite(checkpoint, lambda content: content["visionattn"].update({key: value}))
    with pytest.raises(ValueError, match="description of its model has ") as error:
        load_checkpoint(checkpoint)
    assert describe(error.value).startswith(f"{checkpoint}: the checkpoint's description of its model has ")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """Write a folder as on the Hugging Face hub, with an architecture and without weights."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": {"num_classes": 10}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("reader", ["classify", "validate"], indirect=True)
def test_checkpoint_that_names_another_folder_is_not_followed(
    reader: Reader, digits_checkpoint: Path, model_folder: Path, fails: Fails, command: Callable[..., Any]
) -> None:
    elsewhere = f"local-dir:{model_folder}"
    rewrite(digits_checkpoint, lambda content: content["visionattn"].update(model=elsewhere))
    as_of_a_run(digits_checkpoint)
    words = reader(digits_checkpoint)
    option = "--model" if words[0] == "classify" else "--model.name"
    fails(*words, says=f"not read because a file says so: if you trust that place, pass {option} {elsewhere}")
    ended = command(*words, option, elsewhere)  # it is the user's word that counts
    assert ended.status == 0, ended.err


def test_checkpoint_that_names_a_repository_is_not_followed(
    spec: ModelSpec, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = replace(spec, model="hf-hub:someone/something").to_dict()
    rewrite(checkpoint, lambda content: content.update(visionattn=values))
    monkeypatch.setattr("timm.create_model", lambda *args, **kwargs: pytest.fail("it was asked"))
    with pytest.raises(ValueError, match="not read because a file says so"):
        load_checkpoint(checkpoint)


def test_weights_come_from_the_checkpoint_alone(checkpoint: Path, classifier: nn.Module) -> None:
    other = {"checkpoint_path": "/nowhere/else.pth"}  # an argument of timm.create_model
    rewrite(checkpoint, lambda content: content["visionattn"].update(model_kwargs=other))
    model, spec = load_checkpoint(checkpoint)
    assert spec.model_kwargs == {}
    assert torch.equal(model.state_dict()["fc.weight"], classifier.state_dict()["fc.weight"])


@pytest.mark.parametrize(
    "config",
    [
        pytest.param("{not JSON", id="no JSON"),
        pytest.param("[1, 2]", id="no table"),
        pytest.param({"pretrained_cfg": {}}, id="no architecture"),
        pytest.param({"architecture": "evilnet"}, id="an unknown architecture"),
        pytest.param({"architecture": "local-dir:/elsewhere"}, id="an architecture from elsewhere"),
        pytest.param({"architecture": "test_resnet", "num_classes": "many"}, id="a wrong type"),
        pytest.param({"architecture": "test_resnet", "model_args": {"checkpoint_path": "../x.pth"}}, id="another file"),
        pytest.param({"architecture": "test_resnet", "pretrained_cfg": {"custom_load": True}}, id="a custom loader"),
        pytest.param({"architecture": "test_resnet", "pretrained_cfg": {"file": "../../x.pth"}}, id="a path upwards"),
    ],
)
def test_damaged_model_folder_is_an_error(config: Any, model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    torch.save({"hook": Payload(tmp_path / "ran")}, model_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="model 'local-dir:") as error:
        create_model(f"local-dir:{model_folder}", pretrained=True)
    assert len(describe(error.value)) < 500
    assert not (tmp_path / "ran").exists()


# Weights that a model is built with


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no checkpoint at own.safetensors"),
        (b"no weights", "own.safetensors is not a safetensors file, or only part of one"),
        (safetensors(entry(16), bytes(16)), "model 'test_resnet': its weights do not fit the arguments"),
    ],
    ids=["missing", "damaged", "of another model"],
)
def test_unusable_overlay_is_an_error(content: bytes | None, says: str, colour_folder: Path, fails: Fails) -> None:
    if content is not None:
        Path("own.safetensors").write_bytes(content)
    overlay = json.dumps({"pretrained_cfg_overlay": {"file": "own.safetensors"}})
    model = ("--model=test_resnet", "--pretrained", f"--model_kwargs={overlay}")
    fails("classify", *model, f"--data.root={colour_folder}", says=says)


def test_weights_for_other_channels_are_an_error(colour_folder: Path, fails: Fails) -> None:
    model = ("--model=terminator_pico", "--pretrained", "--model_kwargs={in_chans: 1}")
    says = "the weights of terminator_pico are for images of 3 channels, got in_chans 1"
    fails("classify", *model, f"--data.root={colour_folder}", says=says)


def test_file_without_a_classifier_is_an_error_of_classify(
    quick: tuple[str, ...], classifier: nn.Module, colour_folder: Path, fails: Fails, command: Callable[..., Any]
) -> None:
    path = Path("own.safetensors").absolute()
    save_file({name: value for name, value in classifier.state_dict().items() if not name.startswith("fc.")}, path)
    says = f"{path} holds no classifier: visionattn linear trains one on its features, train.py fit "
    fails("classify", "--model=test_resnet", f"--checkpoint={path}", f"--data.root={colour_folder}", says=says)
    start = ("--data.name=folder", f"--data.root={colour_folder}", f"--model.checkpoint_path={path}")
    assert command("fit", *quick, *start).status == 0


# The newest of a run


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_newest_checkpoint_is_the_newest_undamaged_one(damage: str, checkpoint: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "0")
    run.checkpoints.mkdir(parents=True)
    best, last = run.checkpoints / "best.ckpt", run.checkpoints / "last.ckpt"
    content = bytearray(checkpoint.read_bytes())
    for age, path in enumerate((last, best)):
        path.write_bytes(content)
        os.utime(path, (1000 - age, 1000 - age))
    assert run.newest_checkpoint() == last
    content[len(content) // 2] ^= 1
    last.write_bytes(content if damage == "flipped" else content[:1000])
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged, it is passed over"):
        assert run.newest_checkpoint() == best
    best.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"(best|last)\.ckpt is damaged, it is passed over"):
        assert run.newest_checkpoint() is None
