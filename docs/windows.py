"""Draw docs/windows.png: the keys that three queries see under each kind of window.

python docs/windows.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from visionattn.viz.figure import BLUE, GREEN, ORANGE, new_figure, save_figure
from visionattn_kernels import Window

IMAGE = Path(__file__).with_name("windows.png")
SIZE = 16
QUERIES = {(2, 3): BLUE, (7, 12): ORANGE, (12, 4): GREEN}
"""Row and column of each query, and its colour."""

KINDS = {
    "neighborhood (NAT)": Window.neighborhood(5),
    "dilated (DiNAT)": Window.neighborhood(3, dilation=3),
    "strided": Window.neighborhood(5, stride=3),
    "causal": Window.neighborhood(5, is_causal=True),
    "halo (HaloNet)": Window.halo(block_size=4, halo_size=1),
    "blocks (Swin)": Window.blocks(4),
}


def visible_keys(window: Window, query: tuple[int, int]) -> np.ndarray:
    """Return which keys of a map of SIZE x SIZE the query sees, `[SIZE, SIZE]`."""
    rows, columns = (axis.visible(SIZE)[0][place] for axis, place in zip(window.axes, query, strict=True))
    return torch.outer(rows, columns).numpy()


def main() -> None:
    """Draw a panel for each kind of window."""
    figure = new_figure(13, 2.5)
    for axes, (name, window) in zip(figure.subplots(1, len(KINDS)), KINDS.items(), strict=True):
        pixels = np.full((SIZE, SIZE, 3), 0.95)
        for query, colour in QUERIES.items():
            rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            pixels[visible_keys(window, query)] = 0.45 * rgb + 0.55
            pixels[query] = rgb
        axes.imshow(pixels)
        axes.set_title(name, fontsize=11)
        axes.set_xticks(np.arange(SIZE) - 0.5, labels=[])
        axes.set_yticks(np.arange(SIZE) - 0.5, labels=[])
        axes.grid(color="white", linewidth=1)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    save_figure(figure, IMAGE)


if __name__ == "__main__":
    main()
