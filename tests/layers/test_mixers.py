"""What holds for every token mixer: shapes, independence of images, compilation, and use in models."""

import inspect
import re
from typing import Any

import pytest
import timm
import torch
from timm.models.metaformer import MetaFormer
from torch import Tensor, nn

import visionattn  # noqa: F401 - registers the models
from visionattn.layers.mixers import MIXERS, as_token_mixer, create_mixer

SIZES = [(1, 1), (1, 9), (5, 7), (16, 16), (14, 11)]
each_mixer = pytest.mark.parametrize("name", MIXERS)
CAUSAL = [name for name, mixer in MIXERS.items() if "is_causal" in inspect.signature(mixer).parameters]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def mixer_of(name: str, **options: Any) -> nn.Module:
    """Return a mixer of 16 channels and two heads whose every parameter is far from zero."""
    mixer = create_mixer(name, 16, 2, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in mixer.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return mixer


def random_map(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, *size, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


@each_mixer
@each_size
def test_map_of_any_size_with_gradients(name: str, size: tuple[int, int]) -> None:
    mixer = mixer_of(name)
    x = random_map(*size).requires_grad_()
    out = mixer(x)
    assert out.shape == x.shape
    assert out.isfinite().all()
    out.square().mean().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@each_mixer
def test_batch_without_images(name: str) -> None:
    assert mixer_of(name).eval()(torch.empty(0, 6, 7, 16)).shape == (0, 6, 7, 16)


@each_mixer
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_image_does_not_depend_on_its_batch(name: str, training: bool) -> None:
    mixer = mixer_of(name).double().train(training)
    x = random_map(6, 7, dtype=torch.float64)
    torch.testing.assert_close(mixer(x)[1:], mixer(x[1:]), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_sequence_does_not_see_what_comes_later(name: str) -> None:
    mixer = mixer_of(name, is_causal=True).double().eval()
    x = random_map(1, 150, dtype=torch.float64)
    changed = torch.cat([x[:, :, :100], random_map(1, 50, dtype=torch.float64)], 2)
    out, other = mixer(x), mixer(changed)
    torch.testing.assert_close(other[:, :, :100], out[:, :, :100], atol=1e-12, rtol=0)
    assert not torch.allclose(other[:, :, 100:], out[:, :, 100:])
    torch.testing.assert_close(mixer(x[:, :, :1]), out[:, :, :1], atol=1e-12, rtol=0)


@each_mixer
def test_meta_device_and_dtype_reach_every_tensor(name: str) -> None:
    mixer = create_mixer(name, 16, 2, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {(x.device.type, x.dtype) for x in mixer.parameters()} == {("meta", torch.bfloat16)}
    assert {x.device.type for x in mixer.buffers()} <= {"meta"}


@each_mixer
@pytest.mark.slow
def test_compiles_without_a_graph_break(name: str) -> None:
    mixer = mixer_of(name)
    compiled = torch.compile(mixer, fullgraph=True)
    x = random_map(6, 7)
    torch.testing.assert_close(compiled(x), mixer(x), rtol=1e-4, atol=1e-4)


@each_mixer
def test_channels_that_heads_do_not_divide_are_refused(name: str) -> None:
    for num_heads in (3, 0, -2):
        with pytest.raises(ValueError, match=f"num_heads must divide dim; got dim 16 and num_heads {num_heads}"):
            create_mixer(name, 16, num_heads)


SIZE_OPTIONS = {"group_size", "num_scales", "block_size", "feature_dim", "steps", "num_clusters", "overlap"}


@each_mixer
def test_sizes_below_one_are_named(name: str) -> None:
    options = set(inspect.signature(MIXERS[name]).parameters)
    for option in options & SIZE_OPTIONS:
        with pytest.raises(ValueError, match=f"{option} must be at least 1; got 0"):
            create_mixer(name, 16, 2, **{option: 0})
    for value in (0, 2.5, [3], "3") if "kernel_size" in options else ():
        with pytest.raises(ValueError, match="kernel_size must be an int >= 1, or one per axis; got"):
            create_mixer(name, 16, 2, kernel_size=value)


def test_unknown_mixer_and_option_are_named() -> None:
    with pytest.raises(ValueError, match=r"mixer must be one of neighborhood, full.*; got 'halo'"):
        create_mixer("halo", 16, 2)
    with pytest.raises(ValueError, match="the mixer full has no option kernel_size; its options are"):
        create_mixer("full", 16, 2, kernel_size=3)
    create_mixer("full", 16, 2, defaults={"kernel_size": 3})


@pytest.mark.parametrize(
    ("name", "option", "value", "kind"),
    [
        ("core", "group_size", 2.5, "int"),
        ("blocks", "topk", "all", "int | None"),
        ("power", "power_heads", "no", "bool"),
    ],
)
def test_option_of_another_type_is_refused(name: str, option: str, value: object, kind: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the mixer {name} takes {option} of type {kind}; got {value!r}")):
        create_mixer(name, 16, 2, **{option: value})


@each_mixer
def test_metaformer_takes_a_training_step(name: str) -> None:
    model = MetaFormer(depths=(1, 1), dims=(16, 32), token_mixers=as_token_mixer(name, num_heads=2), num_classes=3)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@each_mixer
def test_hosts_take_it(name: str) -> None:
    narrow = {"embed_dim": 16, "mlp_ratio": 1.0, "num_classes": 3}
    flat = timm.create_model("nat_isotropic_small", depth=2, num_heads=2, mixer=name, cpe=True, **narrow)
    pyramid = timm.create_model("nat_pico", depths=(1, 1), num_heads=(1, 2), mixer=name, **narrow)
    for model in (flat, pyramid):
        assert {type(block.attn) for block in model.modules() if hasattr(block, "attn")} == {MIXERS[name]}
        assert model.eval()(torch.randn(1, 3, 48, 32)).isfinite().all()


def test_blocks_take_several_mixers_in_turn() -> None:
    model = timm.create_model("iso_nano", mixer=["full", "neighborhood"], mixer_kwargs=[None, {"kernel_size": 3}])
    assert [type(block.attn) for block in model.blocks] == 3 * [MIXERS["full"], MIXERS["neighborhood"]]
    assert {block.attn.kernel_size for block in model.blocks[1::2]} == {3}
    with pytest.raises(ValueError, match="mixer_kwargs must be one mapping, or one per mixer, 2; got 1"):
        timm.create_model("iso_nano", mixer=["full", "neighborhood"], mixer_kwargs=[{}])
    with pytest.raises(ValueError, match=r"neighborhood has no option topk; .* mixer_kwargs can be a list"):
        timm.create_model("iso_nano", mixer=["blocks", "neighborhood"], mixer_kwargs={"topk": 2})
    with pytest.raises(ValueError, match="the mixer full has no option device"):
        timm.create_model("iso_nano", mixer="full", mixer_kwargs={"device": "cuda"})
    with pytest.raises(ValueError, match=r"mixer must be one of neighborhood, .*; got 'halo'"):
        timm.create_model("iso_nano", depth=1, mixer=["full", "halo"])
    with pytest.raises(ValueError, match="depth must be at least 1; got 0"):
        timm.create_model("iso_nano", depth=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mixer": {"core": 1}}, "mixer must be a name or a list of names; got {'core': 1}"),
        ({"mixer": []}, "mixer must be a name or a list of names; got []"),
        ({"mixer_kwargs": 3}, "mixer_kwargs must be a mapping, or a list of one mapping per mixer; got 3"),
        ({"mixer_kwargs": ["kernel_size"]}, "or a list of one mapping per mixer; got ['kernel_size']"),
    ],
)
def test_mixers_and_options_of_other_types_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        timm.create_model("iso_nano", **options)
