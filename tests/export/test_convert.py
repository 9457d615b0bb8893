"""The command that converts published checkpoints to safetensors."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import visionattn  # noqa: F401 (registers the models)
from visionattn.cli.errors import run
from visionattn.cli.export import main
from visionattn.export.convert import convert

ARCH = "nat_pico"


@pytest.fixture
def model() -> nn.Module:
    return timm.create_model(ARCH, num_classes=4)


def authors(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights in the authors' layout, in which a level ends with its downsampling."""
    renamed = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"levels\.(\d+)\.downsample", lambda m: f"levels.{int(m[1]) - 1}.downsample", name)
        renamed[name.replace("head.fc", "head")] = value
    return renamed


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line of error of the command, which must end with status 1."""
    assert run(main, ["convert", *(str(argument) for argument in arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_convert_runs_as_a_command(model: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": authors(model)}, tmp_path / "in.pth")
    command = [sys.executable, "-m", "visionattn", "export", "convert", "in.pth", "out.safetensors", "--arch", ARCH]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "levels.0.downsample.norm.weight -> levels.1.downsample.norm.weight [96]" in lines
    assert len(lines) == len(model.state_dict()) + 2
    assert lines[-2].startswith("legacy_pad: the weights were trained with zeros around maps smaller than a window")
    assert re.fullmatch(r"out\.safetensors: \d+ tensors, 1\.08 M parameters, from the authors' layout", lines[-1])
    written = load_file(tmp_path / "out.safetensors")
    assert written.pop("legacy_pad")
    torch.testing.assert_close(written, model.state_dict())
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "architecture": ARCH, "num_classes": "4"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_converted_file_loads_through_timm(model: nn.Module, tmp_path: Path) -> None:
    save_file(authors(model), tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", ARCH)
    overlay = {"file": str(tmp_path / "out.safetensors"), "num_classes": 4}
    with pytest.warns(UserWarning, match="trained with zeros around maps"):
        loaded = timm.create_model(ARCH, pretrained=True, pretrained_cfg_overlay=overlay)
    padded = timm.create_model(ARCH, num_classes=4, legacy_pad=True)
    padded.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(x), padded.eval()(x))
    assert not torch.allclose(loaded(x), model.eval()(x))


def test_interpolated_tables_and_dropped_keys_are_reported(tmp_path: Path) -> None:
    other = timm.create_model(ARCH, num_classes=0, kernel_size=5)
    weights = authors(other) | {"norm2.weight": other.norm.weight.data, "norm2.bias": other.norm.bias.data}
    weights = {name: value for name, value in weights.items() if not name.startswith("norm.")}
    weights |= {"norm0.weight": torch.ones(48), "norm0.bias": torch.ones(48)}
    torch.save(weights, tmp_path / "in.pth")
    lines = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", ARCH)
    table = "levels.1.blocks.0.attn.rpb"
    assert f"{table} -> {table} [4, 13, 13], interpolated from [4, 9, 9]" in lines
    assert "norm0.weight -> dropped" in lines
    assert "norm2.weight -> norm.weight [192]" in lines
    assert lines[-1].endswith("from the authors' layout of a detection backbone, 7 tables interpolated, no classifier")
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == timm.create_model(ARCH, num_classes=0).state_dict().keys() | {"legacy_pad"}
    # The classifier then keeps the weights of the new model.
    overlay = {"file": str(tmp_path / "out.safetensors"), "num_classes": 4}
    with pytest.warns(UserWarning, match="no classifier"):
        timm.create_model(ARCH, pretrained=True, pretrained_cfg_overlay=overlay)


def spoilt(weights: dict[str, Tensor]) -> dict[str, Any]:
    del weights["norm.bias"]
    return {**weights, "extra.weight": torch.zeros(1)}


def test_unfit_file_is_refused(model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    target.write_bytes(b"what was there")
    torch.save(spoilt(authors(model)), source)
    message = refusal(capsys, source, target, "--arch", ARCH)
    assert message.startswith(f"error: {source}: the checkpoint (the authors' layout) does not fit nat_pico: ")
    assert "1 key missing in the file: norm.bias; 1 key left over in the file: extra.weight" in message
    assert target.read_bytes() == b"what was there"


def test_bad_input_is_named(model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    assert f"no checkpoint at {source}" in refusal(capsys, source, target, "--arch", ARCH)
    source.write_text("no weights")
    assert f"{source} is not a checkpoint" in refusal(capsys, source, target, "--arch", ARCH)
    torch.save({"model": nn.Linear(1, 1)}, source)
    assert "torch.nn.modules.linear.Linear" in refusal(capsys, source, target, "--arch", ARCH)
    torch.save(authors(model), source)
    assert "unknown architecture 'nat_pica'; did you mean nat_pico" in refusal(
        capsys, source, target, "--arch", "nat_pica"
    )
    assert "--arch resnet18 is not a NAT, DiNAT or ViT³ model" in refusal(capsys, source, target, "--arch", "resnet18")
    assert "must end in .safetensors" in refusal(capsys, source, tmp_path / "out.pth", "--arch", ARCH)
    assert "no folder" in refusal(capsys, source, tmp_path / "no" / "out.safetensors", "--arch", ARCH)
    assert not target.exists()


def test_help_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["convert", "--help"]) == 0
    assert "--arch NAME" in capsys.readouterr().out
    assert run(main, ["convert", "in.pth", "out.safetensors"]) == 2
    assert capsys.readouterr().err == "error: the following arguments are required: --arch\n"


def test_failed_write_leaves_no_file(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("visionattn.io.save_file", fail)
    torch.save(authors(model), tmp_path / "in.pth")
    with pytest.raises(OSError, match="no space left"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", ARCH)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
