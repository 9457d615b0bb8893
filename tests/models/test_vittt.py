"""ViT³ (arXiv 2512.01643): the size of its table, the authors' names of weights, and a forward from its equations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import visionattn  # noqa: F401 (registers the models)
from tests.layers.ttt_reference import ttt
from visionattn.cli.errors import run
from visionattn.cli.export import main as export

NARROW: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2}
TENSORS = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "cpe.weight", "cpe.bias", "attn.w1", "attn.w2",
           "attn.w3", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias", "mlp.fc1.weight",
           "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")  # fmt: skip
"""Names of the tensors of a block in the authors' files."""


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [("vittt_tiny", 6_149_416, 1.2), ("vittt_small", 23_799_400, 4.8), ("vittt_base", 90_055_912, 18.0)],
)
def test_parameters_and_operations_of_the_table(name: str, params: int, gmacs: float) -> None:
    model = timm.create_model(name, device=torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) == params
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.005, abs=0.05)


def theirs(depth: int = NARROW["depth"], **options: Any) -> dict[str, Tensor]:
    """Return random weights of a model, a narrow one by default, by the authors' names."""
    names = [f"blocks.{i}.{tensor}" for i in range(depth) for tensor in TENSORS]
    names += [f"{layer}.{part}" for layer in ("patch_embed.proj", "norm", "head") for part in ("weight", "bias")]
    with torch.device("meta"):
        shapes = timm.create_model("vittt_tiny", **{**NARROW, "num_classes": 5, "depth": depth, **options}).state_dict()
    return {name: 0.3 * torch.randn(shapes[name.replace("head.", "head.fc.")].shape) for name in names}


def forward(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Compute logits from the equations, with weights by the authors' names."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], 16)
    for i in range(2):
        block = f"blocks.{i}"
        x = x + F.conv2d(x, w[f"{block}.cpe.weight"], w[f"{block}.cpe.bias"], padding=1, groups=len(x[0]))
        x = x.permute(0, 2, 3, 1)
        mixer = {name.removeprefix(f"{block}.attn."): value.requires_grad_() for name, value in w.items()}
        x = x + ttt(mixer, norm(f"{block}.norm1", x))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
        x = x.permute(0, 3, 1, 2)
    return linear("head", norm("norm", x.permute(0, 2, 3, 1)).mean((1, 2)))


def load(weights: Mapping[str, Any], path: Path, **options: Any) -> Any:
    torch.save(weights, path)
    overlay = {"file": str(path), "num_classes": 5}
    return timm.create_model("vittt_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW, **options).eval()


@pytest.mark.parametrize("wrapper", ["model", "state_dict_ema", None])
def test_weights_of_the_authors_give_their_logits(wrapper: str | None, tmp_path: Path) -> None:
    weights = theirs()
    file = {wrapper: {f"module.{name}": value for name, value in weights.items()}, "epoch": 3} if wrapper else weights
    model = load(file, tmp_path / "w.pth")
    back = {name.replace("head.fc.", "head."): value for name, value in model.state_dict().items()}
    torch.testing.assert_close(back, weights, rtol=0, atol=0)
    x = torch.randn(2, 3, 48, 64)
    logits, expected = model(x), forward(weights, x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_weights_load_for_other_classes_and_channels(tmp_path: Path) -> None:
    weights = theirs()
    model = load(weights, tmp_path / "w.pth", num_classes=3, in_chans=1)
    assert model.head.fc.weight.shape == (3, 24)
    torch.testing.assert_close(model.patch_embed.proj.weight, weights["patch_embed.proj.weight"].sum(1, keepdim=True))


def test_command_converts_weights_of_the_authors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = theirs(depth=12, embed_dim=192, num_heads=6)
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({"model": weights}, source)
    assert run(export, ["convert", str(source), str(target), "--arch=vittt_tiny"]) == 0
    assert load_file(target)["head.fc.weight"].equal(weights["head.weight"])
    assert "legacy_pad" not in capsys.readouterr().out
    torch.save({"model": {**weights, "extra": torch.zeros(1)}}, source)
    assert run(export, ["convert", str(source), str(target), "--arch=vittt_tiny"]) == 1
    assert "the authors' layout) does not fit vittt_tiny: 1 key left over in the file: extra" in capsys.readouterr().err
