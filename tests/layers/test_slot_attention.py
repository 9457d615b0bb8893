"""Slot attention against the algorithm of its paper, and its invariances."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.layers.slot_attention import SlotAttention

B, N, C, K, D = 2, 6, 5, 3, 4
EXACT = {"atol": 1e-12, "rtol": 1e-10}


def create(**options: Any) -> SlotAttention:
    module = SlotAttention(**{"dim": D, "in_dim": C, "num_slots": K, "hidden_dim": 7, **options}).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def tokens(batch: int = B) -> Tensor:
    return torch.randn(batch, N, C, dtype=torch.float64)


def norm(layer: Any, x: Tensor) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(var + layer.eps) * layer.weight + layer.bias


def transcription(module: Any, x: Tensor, slots: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Compute Algorithm 1 image by image and slot by slot, with the gates of the GRU written out."""
    found, shares = [], []
    gru = module.gru
    for inputs, s in zip(x, slots, strict=True):
        inputs = norm(module.norm_tokens, inputs)
        k, v = inputs @ module.kv.weight[:D].T, inputs @ module.kv.weight[D:].T
        for _ in range(iterations):
            q = norm(module.norm_slots, s) @ module.q.weight.T
            m = k @ q.T / math.sqrt(D)  # [N, K]
            attention = m.exp() / m.exp().sum(1, keepdim=True) + 1e-8
            new = []
            for slot in range(len(s)):
                weights = attention[:, slot] / attention[:, slot].sum()
                update = sum(weights[token] * v[token] for token in range(N))
                ri, zi, ni = (gru.weight_ih @ update + gru.bias_ih).chunk(3)
                rh, zh, nh = (gru.weight_hh @ s[slot] + gru.bias_hh).chunk(3)
                reset, gate = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
                state = (1 - gate) * torch.tanh(ni + reset * nh) + gate * s[slot]
                hidden = (module.mlp[0].weight @ norm(module.norm_mlp, state) + module.mlp[0].bias).clamp(min=0)
                new.append(state + module.mlp[2].weight @ hidden + module.mlp[2].bias)
            s = torch.stack(new)
        found.append(s)
        shares.append(attention.T)
    return torch.stack(found), torch.stack(shares)


def gradients(loss: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x, *module.parameters()], allow_unused=False))


@pytest.mark.parametrize("init", ["gaussian", "learned"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_outputs_and_gradients_equal_the_algorithm(init: Any, iterations: int) -> None:
    module, x = create(init=init, iterations=iterations), tokens().requires_grad_()
    noise = torch.randn(B, K, D, dtype=torch.float64)
    start = module.mu.expand(B, K, D)
    start = start if module.log_sigma is None else start + noise * module.log_sigma.exp()
    found, expected = module(x, noise), transcription(module, x, start, iterations)
    weights = [torch.randn_like(value) for value in expected]
    losses = [sum((w * value).sum() for w, value in zip(weights, pair, strict=True)) for pair in (found, expected)]
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(gradients(losses[0], module, x), gradients(losses[1], module, x), **EXACT)


@pytest.mark.parametrize("init", ["gaussian", "learned"])
def test_implicit_gradients_equal_the_last_iteration(init: Any) -> None:
    module, x = create(init=init, implicit=True), tokens().requires_grad_()
    noise = torch.randn(B, K, D, dtype=torch.float64)
    start = module.initial_slots(B, noise)
    before, _ = transcription(module, x, start, 2)
    # A step from a fixed point, whose gradient is taken for that of where slots start.
    expected, _ = transcription(module, x, before.detach() + start - start.detach(), 1)
    found, _ = module(x, noise)
    torch.testing.assert_close(found, expected, **EXACT)
    weight = torch.randn_like(found)
    torch.testing.assert_close(
        gradients((weight * found).sum(), module, x), gradients((weight * expected).sum(), module, x), **EXACT
    )


def test_slots_compete_for_each_token() -> None:
    slots, attention = create()(tokens())
    assert (slots.shape, attention.shape) == ((B, K, D), (B, K, N))
    torch.testing.assert_close(attention.sum(1), torch.ones(B, N, dtype=torch.float64), atol=1e-7, rtol=0)


def test_slots_are_equivariant_and_tokens_are_unordered() -> None:
    module, x, noise = create(), tokens(), torch.randn(B, K, D, dtype=torch.float64)
    slots, attention = module(x, noise)
    order = torch.tensor([2, 0, 1])
    permuted = module(x, noise[:, order])
    torch.testing.assert_close(permuted, (slots[:, order], attention[:, order]), **EXACT)
    order = torch.randperm(N)
    permuted = module(x[:, order], noise)
    torch.testing.assert_close(permuted, (slots, attention[:, :, order]), **EXACT)


def test_single_slot_gets_all_attention() -> None:
    slots, attention = create(num_slots=1)(tokens())
    assert slots.isfinite().all()
    torch.testing.assert_close(attention, torch.ones(B, 1, N, dtype=torch.float64), atol=1e-7, rtol=0)


def test_any_number_of_slots_can_be_drawn() -> None:
    slots, _ = create()(tokens(), torch.randn(9, D, dtype=torch.float64))
    assert slots.shape == (B, 9, D)


def test_slots_are_random_in_training_and_fixed_in_evaluation() -> None:
    module, x = create(), tokens(1).expand(2, -1, -1)
    first, second = module(x)[0]
    assert not torch.allclose(first, second)
    module.eval()
    (first, second), again, other = module(x)[0], module(x[:1])[0][0], create().eval()
    torch.testing.assert_close(first, second, **EXACT)
    torch.testing.assert_close(first, again, **EXACT)
    assert torch.equal(module.noise, other.noise)
    assert "noise" not in module.state_dict()
    learned = create(init="learned")
    assert torch.equal(learned(x)[0], learned.eval()(x)[0])
    assert learned.mu.shape == (K, D)


@pytest.mark.parametrize("implicit", [False, True])
def test_parameters_all_receive_a_gradient(implicit: bool) -> None:
    for init in ("gaussian", "learned"):
        module = create(init=init, implicit=implicit)
        module(tokens())[0].square().sum().backward()
        assert [name for name, x in module.named_parameters() if x.grad is None or not x.grad.any()] == []


def test_slot_attention_compiles_as_one_graph() -> None:
    module, x = create(iterations=2).float().eval(), tokens().float()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_low_precision_is_close_to_float32() -> None:
    module, x = create().float().eval(), tokens().float()
    expected, _ = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = module(x)
    assert F.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.99


def test_widths_have_defaults_and_meta_device_works() -> None:
    module = SlotAttention(8, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {(x.device.type, x.dtype) for x in (*module.parameters(), *module.buffers())} == {("meta", torch.bfloat16)}
    assert module.kv.in_features == 8
    assert module.mlp[0].out_features == 16
    real = module.to_empty(device="cpu").float()
    real.reset_parameters()
    torch.testing.assert_close(real.noise, SlotAttention(8).noise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 0}, "num_slots must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"init": "random"}, "init must be one of gaussian, learned, got 'random'"),
    ],
    ids=str,
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotAttention(4, **options)


def test_slots_of_a_model_without_memory_are_drawn_again() -> None:
    """As timm and transformers fill a module from the meta device: parameters from a file, then these buffers."""
    expected = SlotAttention(8, num_slots=3).eval()
    with torch.device("meta"):
        found = SlotAttention(8, num_slots=3).eval()
    found.to_empty(device="cpu").load_state_dict(expected.state_dict())
    found.init_non_persistent_buffers()
    assert torch.equal(found.initial_slots(2), expected.initial_slots(2))
