"""Contact sheets of what a probing head attends: photographs, and over them its maps in colours that mean the same.

A head with M maps is too much to look at. Maps that lie on the same places of the same images are put together and
share a colour, in all images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.files import as_text
from visionattn.viz.image import Pixels, save_image, to_pixels

# Okabe and Ito's colours, without black, which colour-blind readers can tell apart.
COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
GAP, CAPTION, BACKGROUND, INK = 6, 20, 255, (40, 40, 40)  # the first two in pixels
DIMMED = 0.45  # of the brightness, where there is no attention
STRENGTH = 0.85  # of a colour at its strongest; the rest is the photograph

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


def cluster_maps(maps: Any, num_clusters: int) -> Integers:
    """Puts maps together that rise and fall together, over all images at once.

    How far apart two maps are is 1 minus the correlation of their weights, each image's mean taken off; clusters are
    those of average linkage.

    Args:
        maps: weights, not negative, of M maps on N patches in P images, [P, M, N].
        num_clusters: of which there are fewer where there are fewer maps.

    Returns:
        The cluster of each map, [M]; the one with the most maps is 0, among equals the one with the earliest.

    Raises:
        ValueError: maps of another shape, or numbers that are negative or not finite, or no cluster.
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
    photographs: Sequence[Any],
    maps: Any,
    grid: tuple[int, int],
    path: str | Path,
    num_colours: int = len(COLOURS),
    height: int = 112,
) -> Path:
    """Writes the sheet of :func:`draw_attention_maps`, with maps clustered by :func:`cluster_maps`."""
    return save_image(
        draw_attention_maps(photographs, maps, grid, cluster_maps(maps, min(num_colours, len(COLOURS))), height), path
    )


def draw_attention_maps(
    photographs: Sequence[Any], maps: Any, grid: tuple[int, int], clusters: Any, height: int = 112
) -> Pixels:
    """A row for each image: the photograph, all clusters over it, and each cluster alone in its colour.

    What is drawn of a cluster is by how much the mean of its maps exceeds that of a map that is everywhere the same,
    and the strongest that it gets in any of the images has its full colour.

    Args:
        photographs: P paths, Pillow images, or bytes [H, W, 3].
        maps: weights, not negative, [P, M, N].
        grid: rows and columns of patches; N is their product.
        clusters: the cluster of each map, [M], numbers from 0.
        height: of a photograph on the sheet, in pixels; widths are the same, as backbones take square images.

    Returns:
        Bytes [H', W', 3].

    Raises:
        ValueError: numbers that do not fit together, or more clusters than colours.
        OSError: a file that is not there or no image.
    """
    weights, labels = _shares(maps), np.asarray(clusters, dtype=np.int64)
    if weights.shape[::2] != (len(photographs), grid[0] * grid[1]) or labels.shape != weights.shape[1:2]:
        raise ValueError(
            f"{len(photographs)} photographs, {len(labels)} clustered maps and a grid of {grid[0]}×{grid[1]} patches "
            f"do not fit maps of shape {list(weights.shape)}"
        )
    if not 0 <= labels.min() <= labels.max() < len(COLOURS):
        raise ValueError(f"clusters must be numbers from 0 to {len(COLOURS) - 1}, got {labels.min()} to {labels.max()}")
    sizes = np.bincount(labels)
    strengths = _strengths(weights, labels, grid)
    captions = ["", "all maps", *(f"{size} map{'s' if size > 1 else ''}" for size in sizes)]
    rows = [_captions(captions, height)]
    for photograph, each in zip(photographs, strengths, strict=True):
        pixels = _resize(to_pixels(photograph), height)
        smooth = np.stack([_resize(strength, height).clip(0, 1) for strength in each])
        alone = [_overlay(pixels, smooth[[k]], [colour]) for k, colour in zip(range(len(sizes)), COLOURS, strict=False)]
        rows.append(_row([pixels, _overlay(pixels, smooth, COLOURS[: len(sizes)]), *alone]))
    return np.pad(np.concatenate(rows), ((GAP, 0), (GAP, 0), (0, 0)), constant_values=BACKGROUND)


def _shares(maps: Any) -> Floats:
    """Maps whose weights add up to 1; those of no weight at all are the same everywhere."""
    weights = np.asarray(maps, dtype=np.float64)
    if weights.ndim != 3 or not weights.size:
        raise ValueError(f"maps are weights [images, maps, patches], got {list(weights.shape)}")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError("weights of attention must be finite and not negative")
    sums = weights.sum(-1, keepdims=True)
    return np.where(sums > 0, weights / np.where(sums > 0, sums, 1), 1 / weights.shape[-1])


def _strengths(weights: Floats, labels: Integers, grid: tuple[int, int]) -> Floats:
    """How strong the colour of each cluster is, [P, K, rows, columns], from 0 to 1."""
    mean = np.stack([weights[:, labels == k].mean(1) for k in range(labels.max() + 1)], axis=1)
    excess = np.maximum(mean * weights.shape[-1] - 1, 0)
    strongest = excess.max((0, 2), keepdims=True)
    # The square root, as few patches come near the strongest of all.
    return np.sqrt(excess / np.where(strongest > 0, strongest, 1)).reshape(*mean.shape[:2], *grid)


def _overlay(pixels: Pixels, strengths: Floats, colours: Sequence[tuple[int, int, int]]) -> Pixels:
    """Colours over a photograph, of strengths [K, H, W]; where none is, it is dark."""
    shares = strengths**4  # so that the strongest one tells, yet without hard edges
    mixed = np.tensordot(shares, np.asarray(colours, np.float64), axes=(0, 0))
    mixed /= np.maximum(shares.sum(0), np.finfo(np.float64).tiny)[..., None]
    opacity = strengths.max(0)[..., None]
    bright = pixels * (DIMMED + (1 - DIMMED) * opacity)
    return np.asarray((bright + STRENGTH * opacity * (mixed - bright)).round(), dtype=np.uint8)


def _resize(values: Any, height: int) -> Any:
    """A photograph, or numbers for the patches, as a square of this edge in pixels."""
    import cv2

    method = cv2.INTER_AREA if len(values) > height else cv2.INTER_CUBIC
    return cv2.resize(values, (height, height), interpolation=method)


def _row(tiles: Sequence[Pixels]) -> Pixels:
    """Tiles side by side, with gaps behind and below them."""
    return np.concatenate(
        [np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=BACKGROUND) for tile in tiles], axis=1
    )


def _captions(captions: Sequence[str], width: int) -> Pixels:
    """What stands above the columns, from the third on in a bar of the column's colour."""
    import cv2

    tiles = []
    for number, caption in enumerate(captions):
        tile = np.full((CAPTION, width, 3), BACKGROUND, np.uint8)
        if number > 1:
            tile[-4:] = COLOURS[number - 2]
        cv2.putText(tile, as_text(caption), (0, CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
        tiles.append(tile)
    return _row(tiles)
