"""Fill in missing pixels of CIFAR-10 images by softmax attention and by local linear attention, without training.

    python results/interpolation.py --root data/cifar10

Keys are the places of the pixels that are kept, values their colours, weights Gaussian. Softmax attention predicts a
missing pixel by a weighted mean, local linear attention by a weighted linear regression. Prints the PSNR of the missing
pixels over all images, in dB.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import ImageFolder

from visionattn.layers.mixers.local_linear import regress
from visionattn_kernels import Window, windowed_av, windowed_qk

BANDWIDTHS = (0.7, 1.0, 1.5)
"""Standard deviations of the weights, in pixels."""

SHARES = (0.5, 0.25)
"""Of the pixels, those that are kept."""

RIDGE = 0.05
WINDOW = Window.neighborhood(11)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"), help="images, in test/")
    parser.add_argument("--images", type=int, default=50, help="number of test images, evenly spaced")
    args = parser.parse_args(argv)
    if not (args.root / "test").is_dir():
        parser.error(f"no such folder: {args.root / 'test'}; name CIFAR-10 with --root")
    images = read_images(args.root / "test", args.images)
    for share in SHARES:
        for bandwidth in BANDWIDTHS:
            mean, linear = compare(images, share, bandwidth)
            print(
                f"{share:.0%} kept, bandwidth {bandwidth}: softmax {mean:.2f}, local linear {linear:.2f} dB", flush=True
            )
    return 0


def read_images(folder: Path, count: int) -> Tensor:
    """Return `count` images `[B, H, W, 3]` of a folder of class folders, evenly spaced, from 0 to 1.

    Raises:
        ValueError: There are fewer.
    """
    found = ImageFolder(str(folder), np.asarray)
    if not 1 <= count <= len(found):
        raise ValueError(f"--images must be 1 to {len(found)}, the images of {folder}; got {count}")
    chosen = [torch.tensor(found[i * len(found) // count][0]) for i in range(count)]
    return torch.stack(chosen) / 255


def compare(images: Tensor, share: float, bandwidth: float) -> tuple[float, float]:
    """Return the PSNR of the missing pixels by softmax attention and by local linear attention, in dB."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(images.shape[:3], generator=generator) < share
    mean, linear = interpolate(images, kept, bandwidth)
    return psnr(mean, images, ~kept), psnr(linear, images, ~kept)


def interpolate(images: Tensor, kept: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Predict every pixel from the kept ones of its window.

    Args:
        images: `[B, H, W, C]`.
        kept: `[B, H, W]`, bool.
        bandwidth: Standard deviation of the Gaussian weights, in pixels.

    Returns:
        Predictions `[B, H, W, C]` of softmax attention and of local linear attention.
    """
    batch, height, width, _ = images.shape
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).double()
    places = places[None, :, :, None].expand(batch, -1, -1, -1, -1)
    steps = torch.arange(1 - WINDOW.kernel_size[0], WINDOW.kernel_size[0]).double()
    gaussian = -(steps[:, None] ** 2 + steps**2)[None] / (2 * bandwidth**2)
    missing = -1e4 * (~kept).double()[..., None, None]
    weights = windowed_qk(torch.ones_like(missing), missing, WINDOW, gaussian).softmax(-1)
    values = images.double().unsqueeze(3)
    mean = windowed_av(weights, values, WINDOW)
    linear = regress(weights, places, places, values, WINDOW, torch.tensor([RIDGE]).double(), steps=2)
    return mean.squeeze(3), linear.squeeze(3)


def psnr(found: Tensor, images: Tensor, where: Tensor) -> float:
    """Return the peak signal-to-noise ratio of some pixels, in dB, if the peak is 1."""
    return -10 * math.log10((found - images)[where].square().mean().item())


if __name__ == "__main__":
    sys.exit(main())
