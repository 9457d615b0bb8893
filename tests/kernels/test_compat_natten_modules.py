"""NATTEN's old modules and switches: parameters, arguments of both eras, padding, and the name `natten`."""

import importlib
import importlib.metadata
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visionattn_kernels.compat.natten as compat
from visionattn.layers.neighborhood_attention import NeighborhoodAttention2d
from visionattn_kernels.compat.natten import NeighborhoodAttention1D, NeighborhoodAttention2D, functional

DIM, HEADS = 12, 2


def old_state_dict(*table: int) -> dict[str, Tensor]:
    """The parameters of a module of the releases up to 0.15."""
    shapes = {
        "rpb": (HEADS, *table),
        "qkv.weight": (3 * DIM, DIM),
        "qkv.bias": (3 * DIM,),
        "proj.weight": (DIM, DIM),
        "proj.bias": (DIM,),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def by_definition(state: dict[str, Tensor], x: Tensor, kernel: int, dilation: int) -> Tensor:
    """The module of `[B, H, W, dim]` in plain torch, its attention by the functions, padded as up to 0.15."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, max(0, kernel * dilation - width), 0, max(0, kernel * dilation - height)))
    qkv = F.linear(x, state["qkv.weight"], state["qkv.bias"])
    q, k, v = qkv.reshape(*x.shape[:3], 3, HEADS, DIM // HEADS).permute(3, 0, 4, 1, 2, 5)
    scores = functional.natten2dqkrpb(q * (DIM // HEADS) ** -0.5, k, state["rpb"], kernel, dilation)
    out = functional.natten2dav(scores.softmax(-1), v, kernel, dilation).permute(0, 2, 3, 1, 4).reshape(x.shape)
    return F.linear(out[:, :height, :width], state["proj.weight"], state["proj.bias"])


@pytest.mark.parametrize(("size", "kernel", "dilation"), [((9, 11), 5, 1), ((13, 8), 3, 2), ((5, 12), 3, 3)])
def test_module_computes_with_an_old_state_dict(size: tuple[int, int], kernel: int, dilation: int) -> None:
    state = old_state_dict(2 * kernel - 1, 2 * kernel - 1)
    module = NeighborhoodAttention2D(DIM, HEADS, kernel, dilation).eval()
    module.load_state_dict(state)
    x = torch.randn(2, *size, DIM)
    torch.testing.assert_close(module(x), by_definition(state, x, kernel, dilation), atol=1e-5, rtol=1e-4)
    ours = NeighborhoodAttention2d(DIM, HEADS, kernel, dilation, legacy_pad=True)
    ours.load_state_dict(state)
    torch.testing.assert_close(module(x), ours(x), atol=1e-5, rtol=1e-4)


def test_sequence_equals_a_map_of_one_row() -> None:
    state = old_state_dict(9)
    module = NeighborhoodAttention1D(DIM, HEADS, 5, 2)
    module.load_state_dict(state)
    q, k, v = (module.qkv(x := torch.randn(2, 13, DIM))).unflatten(-1, (3, HEADS, -1)).unbind(2)
    expected = functional.na1d(q, k, v, 5, 2, rpb=state["rpb"])
    torch.testing.assert_close(module(x), module.proj(expected.flatten(-2)))
    assert module(x[:, :4]).shape == (2, 4, DIM), "shorter than a window"


@pytest.mark.parametrize(
    ("arguments", "has_rpb"),
    [
        ({}, True),
        ({"bias": True}, True),
        ({"bias": False}, False),
        ({"rel_pos_bias": True}, True),
        ({"rel_pos_bias": False, "use_experimental_ops": True}, False),
        ({"is_causal": True}, False),
        ({"dilation": None, "qk_scale": 0.5, "attn_drop": 0.1, "proj_drop": 0.1, "qkv_bias": True}, True),
    ],
)
def test_arguments_of_both_eras(arguments: dict[str, Any], has_rpb: bool) -> None:
    module = NeighborhoodAttention2D(dim=DIM, num_heads=HEADS, kernel_size=3, **arguments)
    assert set(module.state_dict()) == {name for name in old_state_dict(5, 5) if has_rpb or name != "rpb"}
    assert module(torch.randn(1, 6, 7, DIM)).shape == (1, 6, 7, DIM)
    assert set(NeighborhoodAttention2D(DIM, HEADS, 3, qkv_bias=False).state_dict()) >= {"qkv.weight", "rpb"}


def test_defaults_of_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn_kernels.compat.natten.modules._release", "0.14")
    compat.use_defaults_of("0.17")
    assert NeighborhoodAttention1D(DIM, HEADS, 3).rpb is None
    assert NeighborhoodAttention1D(DIM, HEADS, 3, rel_pos_bias=True).rpb is not None
    compat.use_defaults_of("0.15")
    assert NeighborhoodAttention1D(DIM, HEADS, 3).rpb is not None
    with pytest.raises(ValueError, match=r"release must be one of 0\.14, 0\.15, 0\.17; got '0\.20'"):
        compat.use_defaults_of("0.20")


def test_dropout_of_weights_acts_in_training_alone() -> None:
    x = torch.randn(1, 6, 7, DIM)
    module = NeighborhoodAttention2D(DIM, HEADS, 3, attn_drop=0.5)
    with torch.no_grad():
        module.proj.weight.copy_(torch.eye(DIM)), module.proj.bias.zero_()
        assert not torch.equal(module(x), module(x))
        mean = torch.stack([module(x) for _ in range(400)]).mean(0)
        torch.testing.assert_close(mean, module.eval()(x), atol=0.15, rtol=0)
        assert torch.equal(module(x), module(x))


def test_tracing() -> None:
    module = nn.Sequential(NeighborhoodAttention2D(DIM, HEADS, 3, 2), nn.LayerNorm(DIM)).eval()
    x = torch.randn(1, 9, 5, DIM)
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), module(x))


def test_compiling() -> None:
    module = NeighborhoodAttention2D(DIM, HEADS, 3, 2).eval()

    def both(x: Tensor) -> Tensor:
        q, k, v = module.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(3, 0, 4, 1, 2, 5)
        scores = functional.natten2dqkrpb(q, k, module.rpb, 3, 2)
        return module(x) + functional.natten2dav(scores.softmax(-1), v, 3, 2).movedim(1, -2).flatten(-2)

    x = torch.randn(1, 9, 7, DIM)
    torch.testing.assert_close(torch.compile(both, backend="aot_eager", fullgraph=True)(x), both(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias": True, "rel_pos_bias": True}, "bias and rel_pos_bias are two names of one argument"),
        ({"num_heads": 5}, "num_heads must divide dim; got dim 12 and num_heads 5"),
        ({"kernel_size": 3.0}, "kernel_size must be one int, or 2 of them"),
    ],
)
def test_error_names_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention2D(**{"dim": DIM, "num_heads": HEADS, "kernel_size": 3, **arguments})


def test_error_names_the_layout() -> None:
    with pytest.raises(ValueError, match=r"x must be \[B, H, W, dim\]; got shape \[1, 9, 12\]"):
        NeighborhoodAttention2D(DIM, HEADS, 3)(torch.zeros(1, 9, DIM))
    with pytest.raises(TypeError, match="positional arguments"):
        NeighborhoodAttention2D(DIM, HEADS, 3, 1, True)


SWITCHES = {"fused_na": False, "fna": False, "gemm_na": True, "tiled_na": True, "tf32_in_gemm_na": True}


@pytest.mark.parametrize(("name", "initially"), SWITCHES.items())
def test_switches_are_remembered(name: str, initially: bool) -> None:
    use, is_enabled = getattr(compat, f"use_{name}"), getattr(compat, f"is_{name}_enabled")
    assert is_enabled() is initially
    for mode in (not initially, initially):
        use(mode)
        assert is_enabled() is mode


def test_every_setting_can_be_called() -> None:
    assert (compat.disable_tf32(), compat.enable_tf32()) == (False, True)
    compat.use_fused_na(True, kv_parallel=True, use_flex_attention=False)
    assert compat.is_kv_parallelism_in_fused_na_enabled()
    compat.use_fused_na(False)
    compat.use_autotuner(forward_pass=True, warmup_steps_forward=3)
    assert compat.is_autotuner_enabled_for_forward()
    assert not compat.is_autotuner_enabled_for_backward()
    compat.disable_autotuner()
    assert not compat.is_autotuner_enabled()
    compat.set_memory_usage_preference("unrestricted")
    assert compat.is_memory_usage_unrestricted()
    compat.set_memory_usage_preference()
    with pytest.raises(ValueError, match="pref must be one of default, strict, unrestricted; got 'some'"):
        compat.set_memory_usage_preference("some")
    assert compat.has_cuda() == torch.cuda.is_available()
    assert compat.has_fused_na()
    if not torch.cuda.is_available():
        assert not any((compat.has_half(), compat.has_bfloat(0), compat.has_gemm(), compat.has_tf32_gemm()))


@pytest.mark.usefixtures("without_natten")
def test_code_that_cannot_be_edited_finds_natten() -> None:
    compat.install_as_natten()
    compat.install_as_natten()
    assert importlib.import_module("natten") is compat
    assert hasattr(importlib.import_module("natten"), "context"), "by which public code tells 0.17 from older releases"
    assert importlib.import_module("natten.functional") is functional
    for path, name in {
        "natten.natten2d": "natten2dqkrpb",
        "natten.na1d": "NeighborhoodAttention1D",
        "natten.experimental": "na2d",
        "natten.types": "CausalArg2DTypeOrDed",
        "natten.utils": "check_all_args",
        "natten.context": "is_fna_enabled",
    }.items():
        assert hasattr(importlib.import_module(path), name), path
    assert importlib.util.find_spec("natten") is not None
    assert importlib.metadata.version("natten") == compat.__version__
    assert importlib.metadata.version("torch")
    with pytest.raises(ModuleNotFoundError, match=r"natten\.backends"):
        importlib.import_module("natten.backends")


@pytest.mark.usefixtures("without_natten")
def test_loaded_natten_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ModuleType("natten")
    theirs.__version__ = "0.21.7"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "natten", theirs)
    with pytest.raises(RuntimeError, match=r"natten 0\.21\.7 is imported already: call install_as_natten\(\) before"):
        compat.install_as_natten()
    assert sys.modules["natten"] is theirs
