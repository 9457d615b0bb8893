"""Direct effects of heads, against sums over the residual stream that are written out."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

import visionattn  # noqa: F401  registers models
from visionattn.analysis.direct import measure_direct
from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import HeadValues, choose_heads, head_layers
from visionattn.probing.classifier import ProbeClassifier
from visionattn.probing.frozen import FrozenBackbone
from visionattn.probing.heads import create_head

TARGETS = [1, 2, 2]


def network_of(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().double()


def batches_of(size: int = 32) -> list[HeadBatch]:
    images = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor(TARGETS)
    return [HeadBatch(images[:2], targets[:2], ["a", "b"]), HeadBatch(images[2:], targets[2:], ["c"])]


def images_of(batches: list[HeadBatch]) -> Tensor:
    return torch.cat([batch.image for batch in batches])


def direct_of(network: nn.Module, batches: list[HeadBatch]) -> HeadValues:
    layers = head_layers(network)
    return measure_direct(network, layers, choose_heads(layers), batches)


def scores_of(logits: Tensor) -> Tensor:
    """Return the true class's logit minus the mean over classes, `[B]`."""
    return logits[range(len(logits)), TARGETS] - logits.mean(1)


def inputs_and_outputs(network: nn.Module, images: Tensor, *names: str) -> list[tuple[Tensor, Tensor]]:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, out, name=name: found.update({name: (inputs[0].detach(), out.detach())})
        )
        for name in names
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_heads_and_all_else_on_the_stream_of_a_vit_sum_to_the_logits(pool: str) -> None:
    network, batches = network_of("vit_nano_patch4_32", global_pool=pool, init_values=0.5), batches_of()
    images, depth = images_of(batches), len(network.blocks)
    stem, *blocks = inputs_and_outputs(
        network,
        images,
        "norm_pre",
        *(f"blocks.{number}.{part}" for number in range(depth) for part in ("attn.proj", "mlp")),
    )
    stream = inputs_and_outputs(network, images, f"blocks.{depth - 1}")[0][1]
    token = (lambda x: x[:, 0]) if pool == "token" else (lambda x: x[:, 1:].mean(1))
    norm = network.norm if pool == "token" else network.fc_norm
    if pool == "token":
        scale = (stream.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
    else:
        scale = (token(stream).var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()[:, None]

    def score(added: Tensor) -> Tensor:
        """Return the part of a score that is due to an addend of the stream."""
        normal = (added - added.mean(-1, keepdim=True)) * scale * norm.weight
        return scores_of(token(normal) @ network.head.weight.T)

    rest = scores_of((network.head.weight @ norm.bias + network.head.bias)[None].expand(3, -1)) + score(stem[1])
    total = rest.clone()
    values = direct_of(network, batches)
    for number in range(depth):
        block = network.blocks[number]
        (heads, _), (_, mlp) = blocks[2 * number], blocks[2 * number + 1]
        total += score(mlp * block.ls2.gamma) + score((block.attn.proj.bias * block.ls1.gamma).expand_as(stream))
        for head, weight in enumerate(block.attn.proj.weight.chunk(3, 1)):
            part = score(heads.chunk(3, -1)[head] @ weight.T * block.ls1.gamma)
            total += part
            expected = {"direct": part.mean().item(), "direct_se": (part.std() / 3**0.5).item()}
            assert values[number, head] == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(total, scores_of(network(images)), rtol=1e-9, atol=1e-9)


KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "nat": ("nat_pico", {}, 32),
    "iso": ("iso_nano", {"depth": 2}, 32),
    "dcal": ("dcal_vit_pico", {"depth": 2}, 32),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 112, "depths": (1, 2), "num_heads": (2, 4), "embed_dim": 16},
        112,
    ),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2, "embed_dim": 48}, 56),
    "beit": ("beit_base_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 48}, 64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_last_block_equals_a_difference_that_later_modules_do_not_see(kind: str) -> None:
    name, kwargs, size = KINDS[kind]
    network, batches = network_of(name, **kwargs), batches_of(size)
    values = direct_of(network, batches)
    if kind == "dcal":
        network.set_inference("sa")
    layer = head_layers(network)[-1]
    proj: Any = layer.proj
    width = proj.weight.shape[1] // layer.num_heads
    final = "fc_norm" if isinstance(network.norm, nn.Identity) else "norm"
    (_, before_mlp), (stream, _) = inputs_and_outputs(network, images_of(batches), f"{layer.name}.norm2", final)
    axis = 1 if stream.dim() == 4 and kind != "swin" else -1
    norm = network.get_submodule(final)
    scale = (stream.var(axis, unbiased=False, keepdim=True) + norm.eps).rsqrt()

    def without_head(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        outputs = inputs[0].clone()
        outputs[..., width : 2 * width] = 0
        return (outputs,)

    def with_old_scale(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        shape = [-1, 1, 1] if axis == 1 else [-1]
        x = inputs[0] - inputs[0].mean(axis, keepdim=True)
        return x * scale * norm.weight.view(shape) + norm.bias.view(shape)

    network.get_submodule(f"{layer.name}.norm2").register_forward_hook(lambda *_: before_mlp)
    norm.register_forward_hook(with_old_scale)
    with torch.no_grad():
        logits = network(images_of(batches))
        proj.register_forward_pre_hook(without_head)
        part = scores_of(logits) - scores_of(network(images_of(batches)))
    expected = {"direct": part.mean().item(), "direct_se": (part.std() / 3**0.5).item()}
    assert values[layer.number, 1] == pytest.approx(expected, rel=1e-6)


def test_stages_before_the_last_have_no_direct_effect() -> None:
    values = direct_of(network_of("nat_pico"), batches_of())
    assert {layer for (layer, _), found in values.items() if found["direct"] is not None} == {5, 6}
    assert set(values) == {(layer, head) for layer, heads in enumerate((2, 2, 4, 4, 4, 8, 8)) for head in range(heads)}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("halo_pico", {}),
        ("vit_nano_patch4_32", {"block_fn": ResPostBlock}),  # norm after attention
        ("vit_nano_patch4_32", {"global_pool": "map"}),  # attention pools
    ],
)
def test_other_networks_have_no_direct_effects(name: str, kwargs: dict[str, Any]) -> None:
    network = network_of(name, **kwargs)
    assert all(found == {"direct": None, "direct_se": None} for found in direct_of(network, batches_of()).values())


def test_images_without_classes_have_no_direct_effects() -> None:
    batches = [batch._replace(target=None) for batch in batches_of()]
    assert direct_of(network_of("vit_nano_patch4_32"), batches)[0, 0] == {"direct": None, "direct_se": None}


def test_network_is_left_as_it_was() -> None:
    network, batches = network_of("dcal_vit_pico", depth=2), batches_of()
    network.head.weight.requires_grad_(False)
    before = network(images_of(batches))
    direct_of(network, batches)
    assert network.inference == "combined"
    assert {name for name, value in network.named_parameters() if not value.requires_grad} == {"head.weight"}
    assert torch.equal(network(images_of(batches)), before)


def test_linear_probe_is_a_classifier_of_its_backbone() -> None:
    network, batches = network_of("vit_nano_patch4_32"), batches_of()
    backbone = FrozenBackbone(network_of("vit_nano_patch4_32"), "vit_nano_patch4_32")
    probe = ProbeClassifier(backbone, create_head("cls", 96, 5), ["last"], list("abcde")).eval()
    probe.head.norm.running_var.uniform_(0.5, 2)
    probe.head.classifier.weight.data *= 50
    network.head.weight.data = (probe.head.classifier.weight / (probe.head.norm.running_var + 1e-6).sqrt()).double()
    expected = direct_of(network, batches)
    for head, found in direct_of(probe, batches).items():
        assert found == pytest.approx(expected[head], rel=1e-4, abs=1e-6)  # a backbone's tokens are float32


def test_attentive_probe_has_no_direct_effects() -> None:
    backbone = FrozenBackbone(network_of("vit_nano_patch4_32"), "vit_nano_patch4_32")
    probe = ProbeClassifier(backbone, create_head("ep_4", 96, 5), ["last"], list("abcde")).eval()
    assert direct_of(probe, batches_of())[5, 0]["direct"] is None
