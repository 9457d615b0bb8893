"""Terminator: the network as its equations stand, its counts, its caches, its sizes, and what it refuses."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import visionattn
from kernels.bench.terminator_reference import PlainTerminator  # which benchmarks also time
from visionattn.layers.prepared import Prepared
from visionattn.layers.sfne import SlowFastBlock, tile_channels

LINE: dict[str, Any] = {"img_size": 20, "proj_drop_rate": 0.0}
IMAGE: dict[str, Any] = {"img_size": 9, "proj_drop_rate": 0.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ten branches": ("terminator_pico", IMAGE),
    "nine branches": ("terminator_pico", {**IMAGE, "local_sizes": (0, 9, 5, 7)}),
    "five blocks": ("terminator", {**IMAGE, "embed_dims": (12, 24, 12, 24, 36)}),
    "rectangle": ("terminator_pico", {**IMAGE, "img_size": (5, 8), "global_mode": "elementwise"}),
    "convolution": ("terminator_pico", {**IMAGE, "img_size": (5, 6), "global_mode": "fftconv"}),
    "patches": ("terminator_pico", {**IMAGE, "img_size": 12, "patch_size": 2}),
    "sequence": ("terminator_1d_pico", LINE),
    "sequence, convolution": ("terminator_1d_pico", {**LINE, "global_mode": "fftconv"}),
    "one position": ("terminator_pico", {**IMAGE, "img_size": 1}),
}


def create(name: str = "terminator_pico", **options: Any) -> nn.Module:
    """A model whose numbers all matter: what starts at zero or one, statistics too, is drawn."""
    model = timm.create_model(name, **options)
    with torch.no_grad():
        for key, x in (*model.named_parameters(), *model.named_buffers()):
            if "bias" in key or key.endswith(("scalar", "running_mean")):
                x.normal_(0, 0.5)
            elif key.endswith("running_var"):
                x.uniform_(0.5, 2)
    return model


def images(model: nn.Module, batch: int = 3, **kwargs: Any) -> Tensor:
    return torch.randn(batch, model.in_chans, *model.img_size, **kwargs)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("paper_compat", [False, True], ids=["default", "compat"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_network_is_its_transcription(variant: str, paper_compat: bool, training: bool) -> None:
    name, options = VARIANTS[variant]
    model = create(name, paper_compat=paper_compat, **options).double()
    x = images(model, dtype=torch.float64)
    results = []
    for make in (lambda net: net, PlainTerminator):
        net, given = make(copy.deepcopy(model)).train(training), x.clone().requires_grad_()
        logits = net(given)
        upstream = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view(logits.shape)
        leaves = [given, *net.parameters()]
        grads = torch.autograd.grad(logits, leaves, upstream, allow_unused=True, materialize_grads=True)
        results.append([logits, *grads])
        with torch.no_grad():  # other operators
            torch.testing.assert_close(net(given), logits, rtol=1e-9, atol=1e-9)
    ours, expected = results
    scale = max(float(g.abs().max()) for g in expected[1:])
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-9, atol=1e-9)
    for a, b in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(a / scale, b / scale, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("num_classes", "published"), [(10, 1_336_855), (100, 1_362_865)])
def test_parameters_are_as_published(num_classes: int, published: int) -> None:
    """The default leaves out 7 biases of C and one of C_out per block, and 4 scalars: they have no effect."""
    counts = []
    for paper_compat in (True, False):
        with torch.device("meta"):
            model = timm.create_model("terminator", num_classes=num_classes, paper_compat=paper_compat)
        counts.append(sum(x.numel() for n, x in model.named_parameters()))
    dims = [3, 12, 36, 72, 144, 288]
    without_effect = sum(7 * dim + dim_out + 4 for dim, dim_out in pairwise(dims))
    assert counts == [published, published - without_effect]


def test_multiplications_are_as_published() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as flops:
        timm.create_model("terminator").eval()(torch.empty(1, 3, 32, 32))
    assert flops.get_total_flops() / 2e9 == pytest.approx(1.10, abs=0.005)


def test_omitted_parameters_have_no_effect() -> None:
    """Drawn biases before a standardization change nothing; scalars after a local branch are added to a mixed map."""
    model = create(paper_compat=True, **IMAGE).double().eval()
    x = images(model, dtype=torch.float64)
    expected = model(x)
    ends = ("mix.bias", "rgu_slow.proj.bias", "rgu_fast.proj.bias", "local_1.proj.bias", "proj.bias", "local_3.scalar")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(ends) and "kernel" not in key and "hci" not in key and "hyper" not in key:
                parameter.add_(1.5)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["ten branches", "sequence", "one position"])
def test_prediction_depends_on_its_image_alone(variant: str) -> None:
    name, options = VARIANTS[variant]
    model = create(name, **options).double().eval()
    x = images(model, 4, dtype=torch.float64)
    with torch.no_grad():
        together, alone = model(x)[:1], model(x[:1])
        beside_others = model(torch.cat((x[:1], 100 * images(model, 2, dtype=torch.float64))))[:1]
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(beside_others, together, rtol=1e-9, atol=1e-9)


def test_compat_prediction_depends_on_its_batch() -> None:
    model = create(paper_compat=True, **IMAGE).eval()
    x = images(model, 4)
    with torch.no_grad():
        assert (model(x)[:1] - model(x[:2])[:1]).abs().max() > 1e-3


def test_prediction_outlives_saving_and_conversion(tmp_path: Path) -> None:
    model = create(**IMAGE).eval()
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        again = timm.create_model("terminator_pico", **IMAGE).eval()
        again(x)  # what is kept from other weights must go
        again.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
        torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(again.double().float()(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(again.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-4)
        rounded = copy.deepcopy(model).to(torch.bfloat16)
        half = rounded(x.bfloat16())
    assert half.dtype == torch.bfloat16
    kernels = zip(model.hyper_kernels().values(), rounded.hyper_kernels().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in kernels)  # noise of high frequency would be other noise
    assert (half - expected).abs().max() < 0.1 * expected.abs().max()


def fresh_answer(model: nn.Module, x: Tensor) -> Tensor:
    other = timm.create_model("terminator_pico", **IMAGE).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        return other(x)


def load_in_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        model.load_state_dict(create(**IMAGE).state_dict())


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "in place": lambda model: [p.mul_(1.05) for p in model.parameters()],
    "buffers": lambda model: [b.add_(0.1) for b in model.buffers()],
    "data": lambda model: [p.data.mul_(1.05) for p in model.parameters()],
    "NumPy view": lambda model: [np.multiply(a := p.detach().numpy(), 1.05, out=a) for p in model.parameters()],
    "load": lambda model: model.load_state_dict(create(**IMAGE).state_dict()),
    "load, in inference mode": load_in_inference_mode,
    "load, assigned": lambda model: model.load_state_dict(create(**IMAGE).state_dict(), assign=True),
    "new parameter": lambda model: setattr(model.blocks[0].kernel.proj, "weight", nn.Parameter(torch.randn(3, 64))),
    "training": lambda model: model.train()(images(model)) is not None and model.eval(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_answer_follows_any_change_of_weights(change: str) -> None:
    model = create(**IMAGE).eval()
    x = images(model)
    with torch.no_grad():
        before = model(x)
        CHANGES[change](model)
        after = model(x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, fresh_answer(model, x), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["load", "load, in inference mode", "load, assigned", "training"])
def test_frozen_weights_end_with_loading_and_training(change: str) -> None:
    model = create(**IMAGE).eval()
    x = images(model)
    with visionattn.frozen_weights(model), torch.no_grad():
        CHANGES[change](model)
        torch.testing.assert_close(model(x), fresh_answer(model, x), rtol=0, atol=0)


@pytest.mark.parametrize("with_grad", [False, True], ids=["no grad", "grad"])
def test_functional_call_and_vmap_over_weights(with_grad: bool) -> None:
    models = [create(**IMAGE).eval() for _ in range(2)]
    x = images(models[0])
    states = [model.state_dict() for model in models]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    with torch.set_grad_enabled(with_grad):
        expected = [model(x) for model in models]
        for state, answer in zip(states, expected, strict=True):
            torch.testing.assert_close(torch.func.functional_call(models[0], state, (x,)), answer)
        mapped = torch.vmap(lambda state: torch.func.functional_call(models[0], state, (x,)))(stacked)
    torch.testing.assert_close(mapped, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_frozen_weights_make_kernels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    model = create(**IMAGE).eval()
    for module in model.modules():
        if isinstance(module, Prepared):
            prepare = module.prepare
            monkeypatch.setattr(module, "prepare", lambda f=prepare: (calls.append(1), f())[1])
    x = images(model)
    with torch.inference_mode():
        expected = model(x)
        calls.clear()
        with visionattn.frozen_weights(model):
            first = len(calls)
            assert torch.equal(model(x), expected)
            assert torch.equal(model(x), expected)
            assert len(calls) == first > 0
        model(x)
        assert len(calls) == 2 * first
    with visionattn.frozen_weights(model):
        loss = model(x).sum()  # gradients reach what the kernels are made of, and inference mode left nothing behind
        loss.backward()
    assert all(block.kernel.filters.weight.grad.any() for block in model.blocks)


def test_frozen_weights_bind_no_copy() -> None:
    model = create(**IMAGE).eval()
    x = images(model)
    with visionattn.frozen_weights(model), torch.no_grad():
        copied = copy.deepcopy(model)
        CHANGES["data"](copied)
        torch.testing.assert_close(copied(x), fresh_answer(copied, x), rtol=0, atol=0)


def test_kernels_of_another_size_are_interpolated() -> None:
    model = create(**IMAGE, kernel_init="band_limited").eval()
    kernels = {key: x.detach().clone() for key, x in model.hyper_kernels().items()}
    model.set_input_size(17)
    larger = model.hyper_kernels()
    assert larger["blocks.0.global"].shape == (3, 17, 17)
    torch.testing.assert_close(larger["blocks.0.global"][:, ::2, ::2], kernels["blocks.0.global"])
    assert torch.equal(larger["blocks.0.gate"], kernels["blocks.0.gate"])
    x = images(model)
    assert x.shape[2:] == (17, 17)
    expected = model(x)
    other = timm.create_model("terminator_pico", img_size=17, grid_size=9).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), expected)
    model.set_input_size(9)
    assert torch.equal(model.hyper_kernels()["blocks.0.global"], kernels["blocks.0.global"])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (31, 33), (9, 9)], ids=str)
@pytest.mark.parametrize("mode", ["elementwise", "fftconv", "matmul"])
def test_any_size_works_or_is_refused(mode: str, size: tuple[int, int]) -> None:
    if mode == "matmul" and size[0] != size[1]:
        with pytest.raises(ValueError, match=rf'"matmul" multiplies square matrices; got img_size {size[0]}x{size[1]}'):
            create(img_size=size)
        return
    model = create(img_size=size, global_mode=mode)
    x = images(model, 2)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    assert model(x[:1]).isfinite().all()


def test_single_image_can_be_trained_on() -> None:
    model = create(**IMAGE)
    assert model(images(model, 1)).isfinite().all()
    small = create(img_size=1)
    with pytest.raises(ValueError, match="more than one value per channel; got one image with a map of 1x1"):
        small(images(small, 1))
    assert small.eval()(images(small, 1)).isfinite().all()


@pytest.mark.parametrize("name", ["terminator_pico", "terminator_1d_pico"])
def test_bfloat16_autocast(name: str) -> None:
    model = create(name, **(IMAGE if name == "terminator_pico" else LINE))
    x = images(model, 8)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
        features = model.forward_features(x)
    assert half.dtype == torch.bfloat16  # of the classifier
    assert features.dtype == torch.float32  # blocks are slower in bfloat16 on CPUs
    half.float().logsumexp(1).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (half - exact).abs().max() < 0.15 * exact.abs().max()


def test_hooks_of_blocks_run_once_under_autocast() -> None:
    model = create(**IMAGE).eval()
    found: list[torch.dtype] = []
    block = next(module for module in model.modules() if isinstance(module, SlowFastBlock))
    block.register_forward_hook(lambda module, inputs, out: found.append(out.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(images(model))
    assert found == [torch.float32]


@pytest.mark.parametrize(
    "training", [pytest.param(True, marks=pytest.mark.slow, id="training"), pytest.param(False, id="evaluation")]
)
def test_network_compiles_in_one_graph(training: bool) -> None:
    """In training with its backward pass. `tests/export/test_graph.py` has the program of the evaluation."""
    model = create(img_size=8, embed_dims=(12,), slow_depths=(2,)).train(training)
    x = images(model)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager" if training else "eager", fullgraph=True)
    results = []
    for net in (model, compiled):
        with torch.set_grad_enabled(training):
            logits = net(x)
        grads = torch.autograd.grad(logits.square().sum(), list(net.parameters())) if training else []
        results.append([logits, *grads])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_slow_loss_holds_global_kernels_together() -> None:
    model = create(**IMAGE, slow_loss_weight=0.5)
    kernels = [x for key, x in model.hyper_kernels().items() if key.endswith("global")]
    expected = torch.zeros(())
    for i, later in enumerate(kernels):
        for earlier in kernels[:i]:
            tiled = earlier[torch.arange(len(later)) % len(earlier)]
            expected = expected + 0.5 * (tiled - later).square().mean()
    loss = model.auxiliary_losses()["slow"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(block.kernel.filters.weight.grad.any() for block in model.blocks)


def test_channels_are_tiled_as_a_whole() -> None:
    x = torch.arange(3)[:, None]
    assert tile_channels(x, 7).flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert tile_channels(x, 2).flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": (3, 20), "ndim": 1}, r"maps of one row, \(1, length\); got img_size 3x20"),
        ({"img_size": 0}, "img_size must be a positive int"),
        ({"img_size": 9, "patch_size": 2}, "img_size 9x9 is not a multiple of patch_size 2"),
        (
            {"embed_dims": (12, 20), "slow_depths": (2, 2)},
            "num_groups must be even and divide dim; got .* 12 and dim 20",
        ),
        ({"slow_depths": (2,)}, "one entry per block, 3; got 1"),
        ({"kernel_init": "normal"}, 'init must be "gamma" or "band_limited"; got \'normal\''),
        ({"global_mode": "conv"}, "global_mode must be one of matmul, elementwise, fftconv"),
        ({"ndim": 3}, "ndim"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("terminator_pico", **options)


def test_images_of_another_size_are_refused() -> None:
    model = create(**IMAGE)
    with pytest.raises(ValueError, match=r"takes images \[B, C, 9, 9\]; got \[2, 3, 8, 9\]: resize them, or call"):
        model(torch.randn(2, 3, 8, 9))
