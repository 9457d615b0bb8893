"""Grad-CAM against values by hand and class activation maps; gradients of pixels against differences."""

import numpy as np
import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import visionattn  # noqa: F401  registers its models
from visionattn.analysis.saliency import (
    default_layer,
    grad_cam,
    input_gradients,
    integrated_gradients,
    saliency_map,
    smooth_gradients,
)


class TwoChannels(nn.Module):
    """Channels x and 5 - x, their means, and scores m0 + 2 m1 and 3 m0 - m1."""

    feature_info = ()
    global_pool = "avg"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.conv.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        self.conv.bias.data = torch.tensor([0.0, 5.0])
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 2.0], [3.0, -1.0]])

    def forward_features(self, images):
        return self.conv(images)

    def forward_head(self, features):
        return self.fc(features.mean((2, 3)))

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


def test_grad_cam_of_two_channels_by_hand():
    images = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(2, 1, 2, 2)
    found = grad_cam(TwoChannels().requires_grad_(False), images, [0, 1])
    expected = [[[2.25, 2.0], [1.75, 1.5]], [[0.0, 0.75], [1.75, 2.75]]]  # (10 - x) / 4 and ReLU(4 x - 5) / 4
    np.testing.assert_allclose(found, expected)


def create(name):
    if name == "swin":
        return SwinTransformer(
            32, 4, num_classes=5, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4
        ).eval()
    return timm.create_model(name, num_classes=5).eval()


@pytest.mark.parametrize("name", ["nat_pico", "resnet_pico", "halo_pico", "swin"])
def test_grad_cam_of_mean_and_linear_head_is_the_class_activation_map(name):
    """Section 3.1 of the paper: with mean pooling and a linear layer both maps agree up to the number of places."""
    model, images = create(name), torch.randn(2, 3, 32, 32)
    weight = model.get_classifier().weight
    nn.init.normal_(weight)
    with torch.no_grad():
        features = model.forward_features(images)
    features = features if name == "swin" else features.permute(0, 2, 3, 1)
    expected = torch.einsum("brcd,bd->brc", features, weight[[3, 1]]).relu() / features[0, ..., 0].numel()
    torch.testing.assert_close(grad_cam(model, images, [3, 1]), expected.detach(), rtol=1e-4, atol=1e-7)


def test_grad_cam_of_a_vit_is_that_of_its_patches():
    model, images = timm.create_model("vit_pico_patch4_32").eval(), torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.head.weight)
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks[:-1]:
        tokens = block(tokens)
    tokens = tokens.detach().requires_grad_()
    logits = model.forward_head(model.norm(model.blocks[-1](tokens)))
    (slopes,) = torch.autograd.grad(logits[0, 2] + logits[1, 7], tokens)
    weights = slopes[:, 1:].mean(1)
    expected = (tokens[:, 1:] @ weights[..., None]).relu().reshape(2, 8, 8).detach()
    assert default_layer(model) == len(model.blocks) - 2
    for layer in (None, len(model.blocks) - 2, -2):
        torch.testing.assert_close(grad_cam(model, images, torch.tensor([2, 7]), layer), expected)


def test_grad_cam_takes_stages_of_their_size():
    model, images = create("nat_pico"), torch.randn(1, 3, 32, 32)
    nn.init.normal_(model.head.fc.weight)
    assert [tuple(grad_cam(model, images, [0], layer).shape) for layer in (0, 1, -1, "last")] == [
        (1, 16, 16),
        (1, 8, 8),
        (1, 4, 4),
        (1, 4, 4),
    ]
    assert not model._forward_hooks
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("last", "does not depend on the patches of layer last; choose an earlier one"),
        (6, "has no layer 6; there are 0 to 5, and 'last'"),
    ],
)
def test_layer_without_gradient_is_named(layer, message):
    model = timm.create_model("vit_pico_patch4_32").eval()
    with pytest.raises(ValueError, match=message):
        grad_cam(model, torch.randn(1, 3, 32, 32), [0], layer)


def test_grad_cam_of_another_kind_of_model_is_refused():
    with pytest.raises(ValueError, match="classifiers of timm's kind, got Linear"):
        grad_cam(nn.Linear(2, 2), torch.zeros(1, 2), [0])


@pytest.mark.parametrize("classes", [[0], [0, 5], [0, -1]], ids=str)
def test_classes_that_do_not_fit_are_refused(classes):
    with pytest.raises(ValueError, match="a class is needed for each image"):
        input_gradients(create("resnet_pico"), torch.zeros(2, 3, 32, 32), classes)


class Smooth(nn.Module):
    """A smooth network in double precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 3)).double()

    def forward(self, images):
        return self.net(images)


def test_input_gradients_are_differences_of_scores():
    model, images = Smooth(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    found = input_gradients(model, images, [2, 0])
    for place in ((0, 0, 0), (1, 2, 3), (0, 4, 4)):
        step = torch.zeros_like(images)
        step[(slice(None), *place)] = 1e-5
        with torch.no_grad():
            change = (model(images + step) - model(images - step)) / 2e-5
        torch.testing.assert_close(found[(slice(None), *place)], change[[0, 1], [2, 0]])


def test_integrated_gradients_sum_to_the_difference_of_scores():
    model, images = Smooth(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    for baseline in (0.0, 0.7):
        shares = integrated_gradients(model, images, [1, 2], baseline=baseline)
        with torch.no_grad():
            change = model(images) - model(torch.full_like(images, baseline))
        torch.testing.assert_close(shares.sum((1, 2, 3)), change[[0, 1], [1, 2]])


class Squares(nn.Module):
    """A score whose gradient is the image."""

    def forward(self, images):
        return images.square().flatten(1).sum(1, keepdim=True) / 2


def test_integrated_gradients_of_squares_are_half_the_squares():
    images = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(integrated_gradients(Squares(), images, [0], steps=2), images.square() / 2)


def test_smooth_gradients_average_over_noise_of_the_given_size():
    images = torch.rand(2, 3, 32, 32) * torch.tensor([1.0, 4.0]).reshape(2, 1, 1, 1)
    noise = smooth_gradients(Squares(), images, [0, 0], samples=25, noise=0.2) - images
    expected = 0.2 * torch.tensor([1.0, 4.0]) / 5  # a mean of 25
    torch.testing.assert_close(noise.flatten(1).std(1), expected, rtol=0.05, atol=0)
    torch.testing.assert_close(smooth_gradients(Squares(), images, [0, 0], noise=0), images)


def test_smooth_gradients_are_those_of_their_seed():
    images = torch.rand(1, 3, 8, 8)
    first, again, other = (smooth_gradients(Squares(), images, [0], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_saliency_map_sums_magnitudes_of_channels():
    gradients = torch.tensor([1.0, -2.0, 0.5]).reshape(1, 3, 1, 1)
    assert saliency_map(gradients).tolist() == [[[3.5]]]


def test_grad_cam_and_gradients_agree_with_captum():
    attr = pytest.importorskip("captum.attr")
    model, images = create("resnet_pico"), torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.fc.weight)
    target = torch.tensor([4, 0])
    theirs = attr.LayerGradCam(model, model.layer3).attribute(images, target, relu_attributions=True)
    torch.testing.assert_close(grad_cam(model, images, target, 3), theirs[:, 0].detach())
    theirs = attr.IntegratedGradients(model).attribute(images, target=target, n_steps=12)
    torch.testing.assert_close(integrated_gradients(model, images, target, steps=12), theirs.float())


def test_grad_cam_agrees_with_pytorch_grad_cam():
    library = pytest.importorskip("pytorch_grad_cam")
    model, images = timm.create_model("vit_pico_patch4_32").eval(), torch.randn(1, 3, 32, 32)
    nn.init.normal_(model.head.weight)
    targets = [library.utils.model_targets.ClassifierOutputTarget(2)]

    def as_map(tokens):
        return tokens[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)

    with library.GradCAM(model, [model.blocks[-2]], reshape_transform=as_map) as cam:
        theirs = cam(images, targets)  # from 0 to 1, at the size of the image
    scale = library.utils.image.scale_cam_image
    ours = scale(scale(grad_cam(model, images, [2]).numpy(), (32, 32)))  # the library scales the enlarged maps again
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
