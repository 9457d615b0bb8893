"""The mixer `ttt` against its equations (arXiv 2512.01643): outputs, gradients, the inner step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.layers.test_mixers import each_size, mixer_of
from tests.layers.ttt_reference import ttt
from visionattn.layers.mixers import ttt as module
from visionattn.layers.mixers.ttt import SCALE, convolve, gated_unit, train_and_run, train_taps, train_unit


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@each_size
def test_outputs_and_outer_gradients_equal_the_reference(size: tuple[int, int]) -> None:
    mixer = mixer_of("ttt").double()
    x = random(2, *size, 16).requires_grad_()
    weights = dict(mixer.named_parameters())
    leaves, upstream = [x, *weights.values()], random(2, *size, 16)
    out, expected = mixer(x), ttt(weights, x)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    grads, wanted = (torch.autograd.grad(y, leaves, upstream) for y in (out, expected))
    torch.testing.assert_close(grads, wanted, atol=1e-10, rtol=1e-10)


def test_closed_form_gradients_are_those_of_the_inner_losses() -> None:
    k, v, w = random(2, 3, 20, 4), random(2, 3, 20, 4), random(2, 3, 4, 8)
    g = torch.func.grad(lambda w: -SCALE * (gated_unit(k, w) * v).sum(-1).mean(-1).sum())(w)
    torch.testing.assert_close(w - train_unit(k, v, w), g / (1 + g.norm(dim=-2, keepdim=True)), atol=1e-12, rtol=0)
    k, v, w = random(2, 4, 5, 3), random(2, 4, 5, 3), random(2, 9, 3)
    g = torch.func.grad(lambda w: -SCALE * (convolve(k, w) * v).mean((1, 2)).sum())(w)
    torch.testing.assert_close(w - train_taps(k, v, w), g / (1 + g.norm(dim=1, keepdim=True)), atol=1e-12, rtol=0)


def test_step_lowers_the_inner_loss() -> None:
    k, v, w = random(2, 3, 50, 4), random(2, 3, 50, 4), random(1, 3, 4, 8)
    before, after = (-(gated_unit(k, x) * v).sum(-1).mean(-1) for x in (w, train_unit(k, v, w)))
    assert (after < before).all()


def test_trained_weights_belong_to_one_image_and_one_head() -> None:
    k, v, w = random(2, 3, 20, 4), random(2, 3, 20, 4), random(1, 3, 4, 8)
    trained = train_unit(k, v, w)
    torch.testing.assert_close(train_unit(k[:1], v[:1], w), trained[:1], atol=1e-14, rtol=0)
    assert not torch.allclose(trained[0], trained[1])
    v = torch.cat([v[:, :2], random(2, 1, 20, 4)], 1)
    torch.testing.assert_close(train_unit(k, v, w)[:, :2], trained[:, :2], atol=0, rtol=0)
    k, v, w = random(2, 4, 5, 3), random(2, 4, 5, 3), random(9, 3)
    torch.testing.assert_close(train_taps(k[1:], v[1:], w), train_taps(k, v, w)[1:], atol=1e-14, rtol=0)


def test_heads_ignore_the_order_of_positions_and_the_convolution_does_not() -> None:
    w1, w2, w3 = random(1, 4, 4, 4), random(1, 4, 4, 4), random(4, 1, 3, 3)
    qkv, order = random(1, 3, 5, 3 * 16 + 3 * 4), torch.randperm(15)
    shuffled = qkv.flatten(1, 2)[:, order].view_as(qkv)
    out, moved = (train_and_run(x, w1, w2, w3).flatten(1, 2) for x in (qkv, shuffled))
    torch.testing.assert_close(moved[..., :16], out[:, order, :16], atol=1e-12, rtol=0)
    assert not torch.allclose(moved[..., 16:], out[:, order, 16:])


def test_extra_head_convolves_with_one_kernel_per_image() -> None:
    x, w = random(2, 4, 5, 3), random(2, 9, 3)
    for image, taps, out in zip(x, w, convolve(x, w), strict=True):
        kernel = taps.T.reshape(3, 1, 3, 3)
        expected = F.conv2d(image.permute(2, 0, 1), kernel, padding=1, groups=3).permute(1, 2, 0)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("inputs", "amp", "steps"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float64, None, torch.float64),
    ],
    ids=["autocast", "bfloat16", "float64"],
)
def test_inner_step_runs_in_float32_or_wider(
    inputs: torch.dtype, amp: torch.dtype | None, steps: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.dtype] = []
    descend = module.descend

    def record(w: Tensor, gradient: Tensor) -> Tensor:
        found.append(gradient.dtype)
        return descend(w, gradient)

    monkeypatch.setattr(module, "descend", record)
    mixer = mixer_of("ttt").to(inputs)
    with torch.autocast("cpu", amp, enabled=amp is not None):
        assert mixer(random(1, 3, 3, 16).to(inputs)).dtype == (amp or inputs)
    assert found == [steps, steps]


def test_memory_for_backward_is_linear_in_positions() -> None:
    def kept(side: int) -> int:
        storages: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = mixer_of("ttt")(torch.randn(1, side, side, 16))
        assert out.requires_grad  # and keeps the storages alive
        return sum(storages.values())

    assert 3 < kept(32) / kept(16) < 4.2


def test_parameters_have_the_shapes_of_the_authors() -> None:
    shapes = {name: tuple(value.shape) for name, value in mixer_of("ttt").state_dict().items()}
    assert shapes == {
        "qkv.weight": (72, 16), "qkv.bias": (72,), "w1": (1, 2, 8, 8), "w2": (1, 2, 8, 8), "w3": (8, 1, 3, 3),
        "proj.weight": (16, 24), "proj.bias": (16,),
    }  # fmt: skip
