"""Sheets of a probing head's attention: images with its maps in colours that are consistent over all images.

A head has too many maps to look at. Maps that attend to the same places of the same images form a cluster, which has
one colour in all images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.viz.image import Pixels, save_image, to_pixels
from visionattn.viz.sheet import COLOURS, DIMMED, caption, join_tiles, stack_rows

STRENGTH = 0.85  # opacity of a colour at its strongest

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


def cluster_maps(maps: Any, num_clusters: int) -> Integers:
    """Cluster maps that rise and fall together over all images.

    The distance of two maps is 1 minus the correlation of their weights, centred per image; clusters are those of
    average linkage.

    Args:
        maps: non-negative weights of M maps on N patches of P images, [P, M, N].
        num_clusters: number of clusters; there are no more than maps.

    Returns:
        The cluster of each map, [M]. Cluster 0 has the most maps; of equal ones the earliest comes first.

    Raises:
        ValueError: maps of another shape, with negative or non-finite weights, or num_clusters below 1.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    weights = _shares(maps)
    count = weights.shape[1]
    if count <= num_clusters:
        return np.arange(count)
    from sklearn.cluster import AgglomerativeClustering

    descriptors = (weights - weights.mean(-1, keepdims=True)).swapaxes(0, 1).reshape(count, -1)
    descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    distances = np.clip(1 - descriptors @ descriptors.T, 0, 2)
    found = AgglomerativeClustering(num_clusters, metric="precomputed", linkage="average").fit_predict(distances)
    _, firsts, sizes = np.unique(found, return_index=True, return_counts=True)
    places = np.empty(num_clusters, np.int64)
    places[np.lexsort((firsts, -sizes))] = np.arange(num_clusters)
    return places[found]


def save_attention_maps(
    images: Sequence[Any],
    maps: Any,
    grid: tuple[int, int],
    path: str | Path,
    num_colours: int = len(COLOURS),
    height: int = 112,
) -> Path:
    """Write the sheet of :func:`draw_attention_maps`, with clusters from :func:`cluster_maps`."""
    clusters = cluster_maps(maps, min(num_colours, len(COLOURS)))
    return save_image(draw_attention_maps(images, maps, grid, clusters, height), path)


def draw_attention_maps(
    images: Sequence[Any], maps: Any, grid: tuple[int, int], clusters: Any, height: int = 112
) -> Pixels:
    """Draw a row for each image: the image, all clusters over it, and each cluster alone in its colour.

    The opacity of a cluster shows how far the mean of its maps exceeds a uniform map. Its maximum over all images has
    the full colour.

    Args:
        images: P paths, Pillow images, or bytes [H, W, 3].
        maps: non-negative weights, [P, M, N].
        grid: rows and columns of patches; N is their product.
        clusters: the cluster of each map, [M], numbers from 0.
        height: height and width of an image on the sheet, in pixels.

    Returns:
        Bytes [H', W', 3].

    Raises:
        ValueError: arguments that do not fit together, or more clusters than colours.
        OSError: a file that is missing or not an image.
    """
    weights, labels = _shares(maps), np.asarray(clusters, dtype=np.int64)
    if weights.shape[::2] != (len(images), grid[0] * grid[1]) or labels.shape != weights.shape[1:2]:
        raise ValueError(
            f"{len(images)} images, {len(labels)} clustered maps and a grid of {grid[0]}×{grid[1]} patches "
            f"do not fit maps of shape {list(weights.shape)}"
        )
    if not 0 <= labels.min() <= labels.max() < len(COLOURS):
        raise ValueError(f"clusters must be numbers from 0 to {len(COLOURS) - 1}, got {labels.min()} to {labels.max()}")
    sizes = np.bincount(labels)
    strengths = _strengths(weights, labels, grid)
    captions = ["", "all maps", *(f"{size} map{'s' if size > 1 else ''}" for size in sizes)]
    bars = (None, None, *COLOURS)
    rows = [join_tiles([caption(text, height, 0.45, bar) for text, bar in zip(captions, bars, strict=False)])]
    for image, each in zip(images, strengths, strict=True):
        pixels = _resize(to_pixels(image), height)
        smooth = np.stack([_resize(strength, height).clip(0, 1) for strength in each])
        alone = [_overlay(pixels, smooth[[k]], [colour]) for k, colour in zip(range(len(sizes)), COLOURS, strict=False)]
        rows.append(join_tiles([pixels, _overlay(pixels, smooth, COLOURS[: len(sizes)]), *alone]))
    return stack_rows(rows)


def _shares(maps: Any) -> Floats:
    """Normalise each map to a sum of 1; maps without any weight become uniform."""
    weights = np.asarray(maps, dtype=np.float64)
    if weights.ndim != 3 or not weights.size:
        raise ValueError(f"maps are weights [images, maps, patches], got {list(weights.shape)}")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError("weights of attention must be finite and not negative")
    sums = weights.sum(-1, keepdims=True)
    return np.where(sums > 0, weights / np.where(sums > 0, sums, 1), 1 / weights.shape[-1])


def _strengths(weights: Floats, labels: Integers, grid: tuple[int, int]) -> Floats:
    """Return the opacity of each cluster, [P, K, rows, columns], from 0 to 1."""
    mean = np.stack([weights[:, labels == k].mean(1) for k in range(labels.max() + 1)], axis=1)
    excess = np.maximum(mean * weights.shape[-1] - 1, 0)
    strongest = excess.max((0, 2), keepdims=True)
    # The square root, as few patches come near the maximum.
    return np.sqrt(excess / np.where(strongest > 0, strongest, 1)).reshape(*mean.shape[:2], *grid)


def _overlay(pixels: Pixels, strengths: Floats, colours: Sequence[tuple[int, int, int]]) -> Pixels:
    """Draw colours of opacity [K, H, W] over an image, which is dark where there is no colour."""
    shares = strengths**4  # the strongest colour dominates, without hard edges
    mixed = np.tensordot(shares, np.asarray(colours, np.float64), axes=(0, 0))
    mixed /= np.maximum(shares.sum(0), np.finfo(np.float64).tiny)[..., None]
    opacity = strengths.max(0)[..., None]
    bright = pixels * (DIMMED + (1 - DIMMED) * opacity)
    return np.asarray((bright + STRENGTH * opacity * (mixed - bright)).round(), dtype=np.uint8)


def _resize(values: Any, height: int) -> Any:
    """Resize an image, or a map of patches, to a square."""
    import cv2

    method = cv2.INTER_AREA if len(values) > height else cv2.INTER_CUBIC
    return cv2.resize(values, (height, height), interpolation=method)
