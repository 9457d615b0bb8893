"""Parts of an image that the score of a class depends on: Grad-CAM of a layer, and gradients of pixels.

All functions take a classifier in evaluation mode, normalised images `[B, channels, H, W]` on its device, and the
number of a class for each image. The score is the logit, before softmax. The model is not changed, and its parameters
may be frozen.

Shapes: B images of H × W pixels, a layer of D channels in R × C places.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionattn.checks import check_range
from visionattn.probing.frozen import Layer, in_rows


def grad_cam(model: nn.Module, images: Tensor, classes: Sequence[int] | Tensor, layer: Layer | None = None) -> Tensor:
    """Return the Grad-CAM maps of a layer, at least 0, `[B, R, C]`.

    With a layer's activations A and the score y of the class, channels are weighted by their mean gradient:

        alpha[d] = 1 / (R C) · sum over r, c of  dy / dA[d, r, c]
        map[r, c] = ReLU(sum over d of  alpha[d] · A[d, r, c])

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV
    2017, https://arxiv.org/abs/1610.02391, equations 1 and 2. The places of a ViT are its patches.

    Args:
        model: A classifier of timm's kind.
        images: Normalised images.
        classes: Number of a class for each image.
        layer: Number of a block (in hierarchical models, of a stage), from the last if negative; or "last", the
            features for the classifier. By default that of `default_layer`.

    Raises:
        ValueError: The model is no classifier of timm's kind, has no such layer, or the score does not depend on it.
    """
    net: Any = model
    if not all(hasattr(net, name) for name in ("forward_features", "forward_head", "feature_info")):
        raise ValueError(f"Grad-CAM takes classifiers of timm's kind, got {type(model).__name__}")
    layer = default_layer(net) if layer is None else layer
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        activations, logits = _layer_and_logits(net, images, layer)
        (gradients,) = torch.autograd.grad(_scores(logits, classes).sum(), activations, allow_unused=True)
    if gradients is None or not (gradients := _places(net, gradients, images, layer)).any():
        raise ValueError(f"the score does not depend on the patches of layer {layer}; choose an earlier one")
    weights = gradients.mean((1, 2), keepdim=True)  # [B, 1, 1, D]
    return (weights * _places(net, activations.detach(), images, layer)).sum(-1).relu()


def default_layer(model: nn.Module) -> Layer:
    """Return "last", or the block before the last of models that classify by the class token alone.

    In these, no patch has an effect after the last block.
    """
    depth = len(getattr(model, "feature_info", ()))
    return max(depth - 2, 0) if getattr(model, "global_pool", None) == "token" else "last"


def input_gradients(model: nn.Module, images: Tensor, classes: Sequence[int] | Tensor) -> Tensor:
    """Return the gradient of the score with respect to each value of the images, `[B, channels, H, W]`.

    Source: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", 2013,
    https://arxiv.org/abs/1312.6034, section 3.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return torch.autograd.grad(_scores(model(images), classes).sum(), images)[0]


def smooth_gradients(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[int] | Tensor,
    samples: int = 16,
    noise: float = 0.15,
    seed: int = 0,
) -> Tensor:
    """Return SmoothGrad: the mean of `input_gradients` over copies of the images with normal noise.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, https://arxiv.org/abs/1706.03825.

    Args:
        model: A classifier.
        images: Normalised images.
        classes: Number of a class for each image.
        samples: Copies of each image.
        noise: Standard deviation of the noise, as a share of the range of an image's values.
        seed: Seed of the noise.

    Returns:
        Mean gradients `[B, channels, H, W]`.
    """
    check_range("samples", samples, 1)
    check_range("noise", noise, 0)
    generator = torch.Generator().manual_seed(seed)
    scale = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(images)
    for _ in range(samples):
        drawn = torch.randn(images.shape, generator=generator).to(images)
        total += input_gradients(model, images + scale * drawn, classes)
    return total / samples


def integrated_gradients(
    model: nn.Module, images: Tensor, classes: Sequence[int] | Tensor, steps: int = 32, baseline: float = 0.0
) -> Tensor:
    """Return integrated gradients, which say how much each value of the images adds to the score.

    With the score F, the image x and the baseline x', the share of value i is

        (x[i] - x'[i]) · integral over a from 0 to 1 of  dF/dx[i] (x' + a (x - x'))

    so that all shares sum to F(x) - F(x'). The integral is a Gauss-Legendre sum.

    Source: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017,
    https://arxiv.org/abs/1703.01365, equation 1.

    Args:
        model: A classifier.
        images: Normalised images.
        classes: Number of a class for each image.
        steps: Terms of the sum.
        baseline: Value of all pixels of x'; 0 in normalised images is the mean colour.

    Returns:
        Shares `[B, channels, H, W]`, in units of the logit.
    """
    check_range("steps", steps, 1)
    points, weights = np.polynomial.legendre.leggauss(steps)  # between -1 and 1
    way = images - baseline
    total = torch.zeros_like(images)
    for point, weight in zip(((points + 1) / 2).tolist(), (weights / 2).tolist(), strict=True):
        total += weight * input_gradients(model, baseline + point * way, classes)
    return way * total


def saliency_map(gradients: Tensor) -> Tensor:
    """Return the sum of magnitudes over channels, `[B, H, W]`, of gradients or shares `[B, channels, H, W]`."""
    return gradients.abs().sum(1)


def _scores(logits: Tensor, classes: Sequence[int] | Tensor) -> Tensor:
    """Return the logit `[B]` of each image's class."""
    index = torch.as_tensor(classes, device=logits.device)
    if logits.dim() != 2 or index.shape != logits.shape[:1] or not ((index >= 0) & (index < logits.shape[1])).all():
        raise ValueError(
            f"a class is needed for each image, below the number of classes; got {index.tolist()} for logits "
            f"{list(logits.shape)}"
        )
    return logits.gather(1, index[:, None])[:, 0]


def _layer_and_logits(model: Any, images: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Return the output of a layer, as it is inside the model, and the logits that were computed from it."""
    if layer == "last":
        features = model.forward_features(images)
        return features, model.forward_head(features)
    depth, kind = len(model.feature_info), type(model).__name__
    if not -depth <= layer < depth:
        raise ValueError(f"{kind} has no layer {layer}; there are 0 to {depth - 1}, and 'last'")
    if hasattr(model, "reroll"):  # Hiera's patches come in the order of its mask units
        raise ValueError(f"{kind} has no map at layer {layer}; take 'last'")
    outputs: list[Tensor] = []
    try:
        module = model.get_submodule(model.feature_info[layer]["module"])
    except (AttributeError, KeyError) as error:
        raise ValueError(f"{kind} does not say where layer {layer} is; take 'last'") from error
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        logits = model(images)
    finally:
        handle.remove()
    if not outputs:
        raise ValueError(f"{kind} does not compute its layers one by one, as Grad-CAM needs them")
    return outputs[-1], logits


def _places(model: Any, values: Tensor, images: Tensor, layer: Layer) -> Tensor:
    """Return the output of a layer as a map `[B, R, C, D]`, without prefix tokens."""
    values = in_rows(model, values)
    if values.dim() == 4:
        return values
    indices = 1 if layer == "last" else [layer % len(model.feature_info)]
    with torch.no_grad():
        (tap,) = model.forward_intermediates(images[:1], indices=indices, intermediates_only=True)
    grid = tap.shape[2:]
    return values[:, -grid.numel() :].unflatten(1, grid)
