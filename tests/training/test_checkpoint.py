"""Loading classifiers: what comes back, and what is said of files that cannot be loaded."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from visionattn.training import (
    ModelSpec,
    create_model,
    describe_model,
    load_checkpoint,
    weights_origin,
)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_average_weights_are_the_default_and_raw_ones_available(checkpoint, classifier, spec):
    model, found = load_checkpoint(checkpoint)
    assert same_weights(model, classifier)
    assert not model.training
    assert found.class_names == spec.class_names
    raw, _ = load_checkpoint(checkpoint, weights="raw")
    assert not any(value.any() for value in raw.state_dict().values())


def test_raw_weights_without_an_average_are_the_weights(digits_checkpoint):
    assert same_weights(load_checkpoint(digits_checkpoint)[0], load_checkpoint(digits_checkpoint, weights="raw")[0])


def test_spec_survives_a_weights_only_checkpoint(tmp_path, spec):
    torch.save(spec.to_dict(), tmp_path / "spec.pt")
    stored = ModelSpec.from_dict(torch.load(tmp_path / "spec.pt", weights_only=True))
    assert stored.to_dict() == spec.to_dict()
    assert stored.preprocessing["input_size"] == [3, 32, 32]


def test_class_names_of_earlier_checkpoints_are_text(spec):
    stored = ModelSpec.from_dict({**spec.to_dict(), "class_names": ["caf\udce9", "b"]})
    assert stored.class_names == [r"caf\xe9", "b"]


def test_spec_refuses_values_that_a_safe_checkpoint_cannot_hold(spec):
    spec.model_kwargs["norm_layer"] = nn.LayerNorm
    with pytest.raises(TypeError, match=r"model_kwargs\.norm_layer"):
        spec.to_dict()


@pytest.mark.parametrize("wrap", ["bare", "timm", "compiled", "safetensors", "legacy"])
def test_plain_weights_load_into_a_named_model_with_as_many_classes(tmp_path, classifier, wrap):
    weights = classifier.state_dict()
    path = tmp_path / ("model.safetensors" if wrap == "safetensors" else "model.pt")
    if wrap == "safetensors":
        save_file(weights, path)
    elif wrap == "timm":
        torch.save({"state_dict": {}, "state_dict_ema": weights, "arch": "test_resnet"}, path)
    elif wrap == "compiled":
        torch.save({"model": {f"_orig_mod.module.{name}": value for name, value in weights.items()}}, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=wrap != "legacy")
    model, spec = load_checkpoint(path, model_name="test_resnet")
    assert same_weights(model, classifier)
    assert (spec.num_classes, spec.class_names, spec.dataset) == (3, [], "")


def test_plain_weights_need_a_name(tmp_path, classifier):
    torch.save(classifier.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt does not say which model .* --model NAME --checkpoint FILE"):
        load_checkpoint(tmp_path / "model.pt")


def test_error_for_another_architecture_names_both_and_the_first_keys(checkpoint):
    with pytest.raises(ValueError, match=r"trained as test_resnet, does not fit resnet10t: .*first \w+") as error:
        load_checkpoint(checkpoint, model_name="resnet10t")
    assert "\n" not in str(error.value)
    assert "of another shape, first conv1.0.weight (16×3×3×3 in the file, 24×3×3×3 in the model)" in str(error.value)


def test_missing_and_unknown_keys_are_named(tmp_path, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["model.extra.bias"] = content["state_dict"].pop("model.fc.bias")
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"1 key missing in the file, first fc\.bias; 1 key unknown .* extra\.bias"):
        load_checkpoint(tmp_path / "odd.ckpt")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.ckpt"):
        load_checkpoint(tmp_path / "gone.ckpt")


def test_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        load_checkpoint(tmp_path)


class Payload:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["text", "random", "empty", "truncated", "other zip", "list", "pickle", "safetensors"])
def test_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, checkpoint, kind):
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.ckpt")
    content = {
        "text": b"learning rate: 0.1\n",
        "random": torch.randint(0, 256, (4000,), dtype=torch.uint8).numpy().tobytes(),
        "empty": b"",
        "truncated": checkpoint.read_bytes()[: checkpoint.stat().st_size // 2],
        "other zip": b"PK\x05\x06" + bytes(18),
        "pickle": pickle.dumps({"a": Payload(tmp_path / "executed")}),
        "safetensors": b"\xff" * 100,
    }
    if kind == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes(content[kind])
    with pytest.raises(ValueError, match=r"x\.\w+ is not a (checkpoint|safetensors file)") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_pickled_code_is_named_and_not_run(tmp_path):
    torch.save({"state_dict": {}, "hook": Payload(tmp_path / "executed")}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt holds pickled code \(\w+\.mkdir\), which is never run"):
        load_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "executed").exists()


def test_metadata_with_missing_keys_are_an_error_of_the_file(tmp_path):
    torch.save({"state_dict": {}, "visionattn": {"model": "test_resnet"}}, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"old\.ckpt: .* lacks model_kwargs, num_classes"):
        load_checkpoint(tmp_path / "old.ckpt")


def test_unknown_models_come_with_near_matches():
    with pytest.raises(ValueError, match=r"unknown model 'resnt18': did you mean .*resnet18"):
        create_model("resnt18")
    with pytest.raises(ValueError, match="unknown model 'qqqqqq'"):
        create_model("qqqqqq")


def test_arguments_that_a_model_does_not_take_are_named():
    with pytest.raises(ValueError, match="'test_resnet' takes no argument 'kernel_size'"):
        create_model("test_resnet", kernel_size=7)


def test_models_without_published_weights_say_so():
    with pytest.raises(ValueError, match=r"unknown weights 'resnet18\.nonsense'; did you mean resnet18\."):
        create_model("resnet18.nonsense", pretrained=True)
    with pytest.raises(ValueError, match=r"model 'terminator': No pretrained weights"):
        create_model("terminator", pretrained=True)


def test_missing_model_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        create_model(f"local-dir:{tmp_path / 'nowhere'}")


def test_preprocessing_follows_the_input_that_the_model_was_built_for():
    kwargs = {"in_chans": 1, "img_size": 48}
    preprocessing = describe_model(create_model("test_vit", **kwargs), "test_vit", **kwargs).preprocessing
    assert tuple(preprocessing["input_size"]) == (1, 48, 48)
    assert len(preprocessing["mean"]) == len(preprocessing["std"]) == 1


def test_weights_origin_names_file_average_or_pretrained(tmp_path, checkpoint, digits_checkpoint, classifier):
    torch.save(classifier.state_dict(), tmp_path / "plain.pth")
    assert weights_origin(False, None, tmp_path / "plain.pth") == "file"
    assert weights_origin(False, None, checkpoint) == "average"
    assert weights_origin(False, None, checkpoint, "raw") == "raw"
    assert weights_origin(False, None, digits_checkpoint) == "raw"  # there is no average
    assert weights_origin(True, {"num_classes": 3}) == "pretrained"
    assert weights_origin(True, {"pretrained_cfg_overlay": {"file": "own.pth"}}) == "file"
    assert weights_origin(True, {"pretrained_cfg_overlay": {"input_size": (3, 32, 32)}}) == "pretrained"
    assert weights_origin(False, {"checkpoint_path": "own.pth"}) == "file"
    assert weights_origin(False, {}) == "random"
