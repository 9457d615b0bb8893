"""Files from elsewhere run no code: model folders, feature caches, states of trainings, exported heads, configs."""

import contextlib
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from visionattn.cli import train
from visionattn.cli.errors import run
from visionattn.probing.classifier import load_probe
from visionattn.probing.features.cache import Field, ShardedArrays
from visionattn.probing.protocols.state import load_state
from visionattn.training import create_model, load_checkpoint


def test_pickle_used_here_does_run_code_if_unpickled(trap: Any) -> None:
    pickle.loads(pickle.dumps(trap))
    assert trap.sprung


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_hub_folder_with_code_in_its_weights_is_refused(file: str, trap: Any, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 3}))
    weights = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save({**weights, "trap": trap}, folder / file)
    with pytest.raises(ValueError, match="model 'local-dir:"):
        create_model(f"local-dir:{folder}", pretrained=True)
    assert not trap.sprung


@pytest.mark.parametrize("name", ["../outside", "/outside", "sub/../../outside"])
def test_hub_folder_cannot_name_a_model_outside_the_registry(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 3}))
    with pytest.raises(ValueError, match="model 'local-dir:"):
        create_model(f"local-dir:{folder}", pretrained=False)


@pytest.mark.parametrize("where", ["checkpoint_path", "pretrained_cfg_overlay"])
def test_checkpoint_that_names_another_file_runs_no_code_of_it(where: str, trap: Any, tmp_path: Path) -> None:
    other, path = tmp_path / "other.pth", tmp_path / "trained.ckpt"
    torch.save({"x": trap}, other)
    model = timm.create_model("test_resnet", num_classes=3)
    spec = {
        "model": "test_resnet",
        "model_kwargs": {where: str(other) if where == "checkpoint_path" else {"file": str(other)}},
        "num_classes": 3,
        "class_names": [],
        "preprocessing": {"input_size": [3, 32, 32]},
        "dataset": "",
    }
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "visionattn": spec}, path)
    with contextlib.suppress(ValueError):
        load_checkpoint(path)
    assert not trap.sprung


def test_feature_cache_is_never_unpickled(trap: Any, tmp_path: Path) -> None:
    arrays = ShardedArrays(tmp_path / "cache", {}, {"x": Field("int64")}, 2)
    with arrays.only_writer():
        arrays.claim()
        arrays.write(0, 0, {"x": np.arange(2)})
    assert not arrays.missing(0, ["x"])
    (file,) = (tmp_path / "cache").rglob("*.npy")
    with file.open("wb") as stream:
        np.save(stream, np.array([trap, trap], dtype=object), allow_pickle=True)
    with pytest.warns(UserWarning, match="is damaged"):
        assert arrays.missing(0, ["x"]) == [0], "it would be computed anew"
    with pytest.raises(ValueError, match="Python objects in dtype"):
        arrays.read(0, 0, "x")
    assert not trap.sprung


@pytest.mark.parametrize("inner", [False, True])
def test_training_state_is_never_unpickled(inner: bool, trap: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    if inner:
        content = torch.frombuffer(bytearray(pickle.dumps(trap)), dtype=torch.uint8)
        torch.save({"checksum": zlib.crc32(content.numpy().tobytes()), "state": content}, path)
    else:
        torch.save({"checksum": 0, "state": trap}, path)
    with pytest.raises(ValueError, match="is damaged or no state of a training"):
        load_state(path)
    assert not trap.sprung


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "sub/../../outside.safetensors"])
def test_exported_head_reads_no_weights_outside_its_folder(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "outside.safetensors")
    content = {
        "format": 1,
        "head": {"name": "linear", "dim": 8, "num_classes": 3, "options": {}},
        "weights": "0",
        "backbone": {"model": "test_resnet", "model_kwargs": {}, "weights": "0", "file": file, "layers": ["last"]},
        "preprocessing": {},
        "class_names": [],
    }
    (folder / "head.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=f"no weights of the backbone at {folder}/[^/]+;"):
        load_probe(folder / "head.json")


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:pathlib.Path.touch [MARK]",
        "model: !!python/object/new:pathlib.Path [MARK]",
        "model: {name: !!python/name:os.system ''}",
        "trainer: {callbacks: [{class_path: pathlib.Path.touch, init_args: {self: MARK}}]}",
        "trainer: {logger: {class_path: subprocess.Popen, init_args: {args: [touch, MARK]}}}",
        "trainer: {plugins: [{class_path: subprocess.call, init_args: {popenargs: [touch, MARK]}}]}",
        "trainer: {profiler: {class_path: builtins.open, init_args: {file: MARK, mode: w}}}",
        "trainer: {callbacks: [{class_path: LambdaCallback, init_args: {setup: os.system}}]}",
        "trainer: {callbacks: [{class_path: LambdaCallback, init_args: {setup: {class_path: subprocess.Popen, "
        "init_args: {args: [touch, MARK]}}}}]}",
        "data: {class_path: builtins.open, init_args: {file: MARK, mode: w}}",
    ],
)
def test_config_cannot_create_other_classes(
    text: str, trap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("MARK", str(trap.mark)))
    assert run(train.main, ["fit", f"--config={config}", "--trainer.accelerator=cpu"]) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1
    assert not trap.sprung
    assert not (tmp_path / "runs").exists()
