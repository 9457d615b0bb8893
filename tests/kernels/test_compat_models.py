"""Two model files that were written for NATTEN 0.14 run unchanged, and equal fused attention with all gradients."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from torch import Tensor, nn

import visionattn  # noqa: F401  registers the models
from visionattn.models._nat_checkpoints import checkpoint_filter_fn
from visionattn_kernels import neighborhood_attention_1d, neighborhood_attention_2d
from visionattn_kernels.compat.natten import install_as_natten

FILES = Path(__file__).parent / "compat_models"
ROUTES = ("changed import", "installed name")


def load(name: str, route: str) -> ModuleType:
    """Run a model file with its one import of natten changed, or as it is under `install_as_natten`."""
    text = (FILES / f"{name}.py").read_text(encoding="utf-8")
    if route == "changed import":
        text, count = re.subn(r"^from natten", "from visionattn_kernels.compat.natten", text, flags=re.MULTILINE)
        assert count == 1
    else:
        install_as_natten()
    module = ModuleType(name)
    exec(compile(text, name, "exec"), vars(module))
    return module


def randomize(model: nn.Module) -> nn.Module:
    """Give every parameter, biases of positions too, a value that a wrong index would show."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.double()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.usefixtures("without_natten")
def test_detection_backbone_equals_fused_nat(route: str) -> None:
    """Its maps, and the gradients of all parameters, are those of `nat_mini` with the same weights.

    The last map, 5x4, is smaller than a window.
    """
    shape = {"embed_dim": 16, "depths": (1, 2, 2), "num_heads": (1, 2, 4), "kernel_size": 5, "mlp_ratio": 2.0}
    dilations = ([2], [1, 2], [1, 1])
    theirs = randomize(
        load("nat_detection", route).NAT(**shape, dilations=dilations, out_indices=(0, 1, 2), layer_scale=1.0)
    )
    ours = timm.create_model("nat_mini", **shape, dilations=dilations, layer_scale=1.0, num_classes=0, legacy_pad=True)
    ours = ours.double()
    weights = checkpoint_filter_fn(theirs.state_dict(), ours)
    ours.load_state_dict(weights, strict=False)

    x = torch.randn(2, 3, 72, 56, dtype=torch.float64, requires_grad=True)
    levels = ours.forward_intermediates(x, intermediates_only=True)
    norms = (theirs.norm0, theirs.norm1, theirs.norm2)
    expected = [norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, level in zip(norms, levels, strict=True)]
    outs = theirs(x)
    assert [tuple(out.shape) for out in outs] == [(2, 16, 18, 14), (2, 32, 9, 7), (2, 64, 5, 4)]
    for out, map_ in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, map_)

    grads = gradients(outs, {"x": x, **dict(theirs.named_parameters())})
    same = gradients(expected, {"x": x, **dict(ours.named_parameters())})
    torch.testing.assert_close(grads["x"], same.pop("x"))
    mapped = checkpoint_filter_fn({name: grad for name, grad in grads.items() if name != "x"}, ours)
    assert len(same) > 50
    for name, grad in same.items():
        torch.testing.assert_close(mapped[name], grad, msg=lambda text, name=name: f"{name}: {text}")
    assert any("rpb" in name and grad.any() for name, grad in same.items())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.usefixtures("without_natten")
def test_music_model_equals_fused_attention(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes windows of 5 with dilations 1 to 8 over time, and 2-D windows over 4 instruments, which it pads."""
    module = load("music_dinat", route)
    model = randomize(module.MusicStructure())
    x = torch.randn(1, 4, 45, 20, dtype=torch.float64, requires_grad=True)
    logits = model(x)
    assert logits.shape == (1, 45, 3)
    leaves = {"x": x, **dict(model.named_parameters())}
    grads = gradients([logits], leaves)

    def attend(layer: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        fused = neighborhood_attention_1d if layer.axes == 1 else neighborhood_attention_2d
        q, k, v = (x.movedim(1, -2) for x in (query, key, value))
        out = fused(q, k, v, layer.kernel_size, dilation=layer.dilation, rpb=layer.rpb, scale=1.0)  # type: ignore[arg-type]
        return out.movedim(-2, 1)

    monkeypatch.setattr(module.NeighborhoodAttention, "attend", attend)
    expected = model(x)
    torch.testing.assert_close(logits, expected)
    for name, grad in gradients([expected], leaves).items():
        torch.testing.assert_close(grads[name], grad, msg=lambda text, name=name: f"{name}: {text}")
    assert all(grad.any() for name, grad in grads.items() if name.endswith("rpb"))


def gradients(outs: list[Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of outputs under fixed gradients of their own, by name of what they depend on."""
    generator = torch.Generator().manual_seed(3)
    upstream = [torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in outs]
    found = torch.autograd.grad(outs, list(leaves.values()), upstream, allow_unused=True)
    return {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
