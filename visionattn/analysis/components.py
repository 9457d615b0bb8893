"""Principal components of patch features, as colours that agree over all images.

The first component of all patches separates foreground from background. The first three components of the
foreground's patches, of all images together, become red, green and blue. So parts that a model represents alike have
one colour in all images.

Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024,
https://arxiv.org/abs/2304.07193, figure 1. The paper does not say how threshold, sign and range are chosen. Ours are:

- threshold: Otsu's, which divides the scores into the two groups with the least variance within;
- sign: the foreground is the group that has fewer patches along the borders of images than within;
- range: a colour goes from the 2nd to the 98th percentile of its component, so that outliers do not dim the others;
- signs of colours: the largest coordinate of a component is positive, so that colours do not change from run to run.

Shapes: P images of R × C patches, features of width D.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from visionattn.probing.frozen import FrozenBackbone

Floats = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

PERCENTILES = (2, 98)


@dataclass(frozen=True, eq=False)
class PatchColours:
    """Patches of images as colours.

    Attributes:
        colours: Red, green and blue of each patch, from 0 to 1, `[P, R, C, 3]`, in the background also.
        foreground: Whether a patch belongs to the foreground, `[P, R, C]`.
    """

    colours: Floats
    foreground: Flags


@dataclass(frozen=True, eq=False)
class Separation:
    """The component that separates foreground from background.

    Attributes:
        mean: Mean of the features `[D]`.
        direction: Unit vector `[D]` towards the foreground.
        threshold: Smallest score of the foreground.
    """

    mean: Floats
    direction: Floats
    threshold: float

    def __call__(self, features: Floats) -> Flags:
        """Return whether patches with features `[..., D]` belong to the foreground, `[...]`."""
        return (features - self.mean) @ self.direction >= self.threshold


@dataclass(frozen=True, eq=False)
class ComponentColours:
    """The components that are colours, as `fit_colours` finds them; call it with the features of any images.

    Attributes:
        separation: The separation of the foreground; None if all patches are coloured.
        mean: Mean of the foreground's features `[D]`.
        directions: Components that are red, green and blue, `[3, D]`.
        low: Scores that are drawn as 0, `[3]`.
        high: Scores that are drawn as 1, `[3]`.
        explained: Share of the variance in the foreground that each component has, `[3]`.
    """

    separation: Separation | None
    mean: Floats
    directions: Floats
    low: Floats
    high: Floats
    explained: Floats

    def __call__(self, features: Any) -> PatchColours:
        """Return the colours of patches with features `[P, R, C, D]`."""
        values = np.asarray(features, dtype=np.float64)
        foreground = np.ones(values.shape[:-1], bool) if self.separation is None else self.separation(values)
        scores = (values - self.mean) @ self.directions.T
        span = np.where(self.high > self.low, self.high - self.low, 1.0)
        colours = ((scores - self.low) / span).clip(0, 1)
        return PatchColours(colours, foreground)


def patch_features(backbone: FrozenBackbone, images: Tensor, batch_size: int = 8) -> np.ndarray[Any, Any]:
    """Return the features of patches `[P, R, C, D]`, float32, of the backbone's only layer.

    Args:
        backbone: The frozen model.
        images: Normalised images `[P, channels, H, W]`.
        batch_size: Images per step.

    Raises:
        ValueError: The backbone returns several layers.
    """
    if len(backbone.layers) != 1:
        raise ValueError(f"patch_features takes a backbone with one layer, got layers {list(backbone.layers)}")
    (layer,) = backbone.layers
    layout = backbone.layouts[layer]
    parts = [backbone(part)[layer][:, layout.num_prefix_tokens :].cpu().numpy() for part in images.split(batch_size)]
    return np.concatenate(parts).reshape(len(images), *layout.grid, layout.dim)


def fit_colours(features: Any, *, foreground: bool = True) -> ComponentColours:
    """Find the principal components that separate the foreground, and those that are its colours.

    Args:
        features: Features of patches `[P, R, C, D]`, array or tensor on the CPU.
        foreground: Whether to separate the foreground; otherwise all patches are coloured.

    Raises:
        ValueError: Features of another shape or not finite, or too few patches or features for three components.
    """
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 4 or not np.isfinite(values).all():
        raise ValueError(f"features of patches are finite numbers [P, R, C, D], got {list(values.shape)}")
    separation = separate_foreground(values) if foreground else None
    flat = values.reshape(-1, values.shape[-1]) if separation is None else values[separation(values)]
    if min(flat.shape) < 3:
        raise ValueError(
            f"three components need at least 3 patches and 3 features, got {len(flat)} and {flat.shape[1]}; take more "
            "images, or a layer with more patches"
        )
    mean, directions, explained = _principal(flat, 3)
    low, high = np.percentile((flat - mean) @ directions.T, PERCENTILES, axis=0)
    return ComponentColours(separation, mean, directions, low, high, explained)


def separate_foreground(features: Any) -> Separation:
    """Divide patches with features `[P, R, C, D]` by their first principal component."""
    values = np.asarray(features, dtype=np.float64)
    mean, (direction,), _ = _principal(values.reshape(-1, values.shape[-1]), 1)
    scores = (values - mean) @ direction
    threshold = otsu_threshold(scores)
    above, border = scores >= threshold, np.ones(scores.shape, bool)
    border[:, 1:-1, 1:-1] = False
    within = above[~border].mean() if not border.all() else 0.5
    if above[border].mean() > within:
        return Separation(mean, -direction, float(np.nextafter(-threshold, np.inf)))
    return Separation(mean, direction, threshold)


def otsu_threshold(scores: Any) -> float:
    """Return the threshold that divides scores into two groups with the least variance within, in all.

    Source: Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE SMC 1979, with the scores themselves
    in place of a histogram.

    Returns:
        The middle between the two groups.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    below = np.arange(1, len(ordered))
    sums = ordered.cumsum()
    lower, upper = sums[:-1] / below, (sums[-1] - sums[:-1]) / (len(ordered) - below)
    place = int((below * (len(ordered) - below) * (upper - lower) ** 2).argmax())
    return float(ordered[place : place + 2].mean())


def _principal(flat: Floats, count: int) -> tuple[Floats, Floats, Floats]:
    """Return mean, the first components `[count, D]` and their shares of the variance, of features `[N, D]`."""
    from sklearn.decomposition import PCA

    # Fewer features than patches: the covariance is small, and its eigenvectors are exact.
    found = PCA(count, svd_solver="covariance_eigh").fit(flat)
    directions = found.components_
    largest = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], axis=1)
    return found.mean_, directions * np.sign(largest), found.explained_variance_ratio_
