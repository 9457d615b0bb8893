"""Measure this library's loading of images, without any training, beside timm's and torchvision's.

    python -m kernels.bench.loader --device cpu
    python -m kernels.bench.loader --device cpu --root data/cifar10 --size 32

One pass over the same JPEG files, with the same crops, flips and normalisation, in turn, each time in another order.
Ours seeds the augmentation of every image, so that a resumed training draws the same; the others draw as they come.
"visionattn, cache" is ours with `--data.cache`, after the pass that fills it. All must first give as many batches of
the same shape, whose mean and standard deviation agree. Digits of 32 pixels show what surrounds the decoding; photos of
500 pixels, cropped to 224, what a training on photographs sees.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.bench.loops import SCALE, check_root, write_digits
from kernels.bench.measure import time_in_turn
from kernels.bench.peers import OURS
from kernels.bench.report import Report, package_version
from kernels.bench.script import choose, new_parser, prepare, run

COLUMNS = (
    *("dtype", "size", "crop", "batch", "workers", "contender", "version"),
    *("median_ms", "images_per_second", "ratio_to_ours"),
)
WORKERS = ("0", "2")
CACHED = f"{OURS}, cache"
CACHE_GB = 2.0
EDGES = {"32": (32, 3200), "500": (224, 640)}
"""By the edge of the images that are written, in pixels: that of the crops, and the number of images."""
TOLERANCE = 0.1
"""Difference of means and standard deviations of normalised images, which are about 1; crops are random."""


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if all loaders do the same."""
    parser = new_parser(__doc__, "float32")
    parser.add_argument("--workers", default=",".join(WORKERS), help="processes that read images (default: 0,2)")
    parser.add_argument("--batch", type=int, default=64, help="images per batch (default: 64)")
    parser.add_argument("--edges", default=",".join(EDGES), help="pixels of the images written (default: 32,500)")
    parser.add_argument("--root", type=Path, help="folder with train/CLASS and val/CLASS, in place of written images")
    parser.add_argument("--size", type=int, default=224, help="edge of the crops from --root (default: 224)")
    args = parser.parse_args(argv)
    check_root(args.root)
    device = prepare(args, "loader")
    if args.size < 1:
        raise ValueError(f"--size must be at least 1; got {args.size}")
    workers, edges, batch = choose("--workers", args.workers, WORKERS), choose("--edges", args.edges, EDGES), args.batch
    if args.quick:
        workers, edges, batch = ["0"], ["32"], 8
    report = Report(args.output, device, COLUMNS)
    for edge in edges if args.root is None else ["given"]:
        with tempfile.TemporaryDirectory() as folder:
            root, size = args.root or Path(folder), args.size
            if args.root is None:
                size, images = EDGES[edge]
                images = 24 if args.quick else max(images, batch)
                (write_digits if edge == "32" else write_photos)(root, images, int(edge))
            for number in map(int, workers):
                loaders = contenders(root, size, batch, number)
                if difference := disagreement(loaders):
                    print(f"error: {difference}: not timed", file=sys.stderr)
                    return 1
                medians = time_in_turn({name: partial(drain, x) for name, x in loaders.items()}, device, args.repeats)
                count = sum(len(image) for image in batches_of(loaders[OURS]))
                common = {"dtype": "float32", "size": edge, "crop": size, "batch": batch, "workers": number}
                report.add(
                    {
                        **common,
                        "contender": name,
                        "version": package_version("visionattn" if name in (OURS, CACHED) else name),
                        "median_ms": median,
                        "images_per_second": 1e3 * count / median,
                        "ratio_to_ours": median / medians[OURS],
                    }
                    for name, median in medians.items()
                )
                rates = ", ".join(f"{name} {1e3 * count / median:,.0f}" for name, median in medians.items())
                print(
                    f"{count} images of {edge} pixels, crops of {size}, {number} workers, images/s: {rates}", flush=True
                )
    if args.output:
        print(f"wrote {args.output}")
    return 0


def contenders(root: Path, size: int, batch: int, workers: int) -> dict[str, Iterable[Any]]:
    """Return the loaders to be timed, by name."""
    return {
        OURS: ours(root, size, batch, workers),
        CACHED: ours(root, size, batch, workers, CACHE_GB),
        "timm": timm_loader(root, size, batch, workers),
        "torchvision": torchvision_loader(root, size, batch, workers),
    }


def write_photos(root: Path, images: int, edge: int) -> None:
    """Write square parts of scikit-learn's two photos as JPEG files, a class each; 20 for validation."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    for split, count in (("train", images), ("val", 20)):
        for index in range(count):
            photo, folder = photos[index % 2], root / split / str(index % 2)
            folder.mkdir(parents=True, exist_ok=True)
            height = photo.height - index % 64
            left = index % (photo.width - height)
            part = photo.crop((left, 0, left + height, height)).resize((edge, edge), Image.Resampling.BICUBIC)
            part.save(folder / f"{index:05d}.jpg", quality=90)


def ours(root: Path, size: int, batch: int, workers: int, cache: float = 0.0) -> Iterable[Any]:
    """Return the loader that `visionattn fit` reads from, with so many 10⁹ bytes of decoded images in memory."""
    from visionattn.data import ImageClassificationData

    data = ImageClassificationData(
        root=str(root),
        img_size=size,
        batch_size=batch,
        num_workers=workers,
        cache=cache,
        scale=SCALE,
        color_jitter=0.0,
        train_interpolation="bicubic",
        seed=0,
    )
    data.setup("fit")
    return Normalised(data.train_dataloader())


class Normalised:
    """Batches as a training on a CPU sees them: normalised in its own process, where those of others come so."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        device = torch.device("cpu")
        return (batch.to(device) for batch in self.loader)


def timm_loader(root: Path, size: int, batch: int, workers: int) -> Iterable[Any]:
    """Return timm's loader, as its training script makes it for CPUs."""
    from timm.data import create_dataset, create_loader

    return create_loader(
        create_dataset("", root=str(root), split="train", is_training=True),
        input_size=(3, size, size),
        batch_size=batch,
        is_training=True,
        scale=SCALE,
        color_jitter=0,
        interpolation="bicubic",
        num_workers=workers,
        use_prefetcher=False,
        persistent_workers=workers > 0,
        device=torch.device("cpu"),
    )


def torchvision_loader(root: Path, size: int, batch: int, workers: int) -> Iterable[Any]:
    """Return the loader of torch on torchvision's folder and transforms."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=SCALE, interpolation=bicubic, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )
    data = datasets.ImageFolder(root / "train", transform)
    return DataLoader(data, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0)


def batches_of(loader: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the images of each batch of any loader."""
    for batch in loader:
        yield batch[0]


def drain(loader: Iterable[Any]) -> None:
    """Run one pass over a loader."""
    for _ in loader:
        pass


def disagreement(loaders: dict[str, Iterable[Any]]) -> str | None:
    """Return the differences between loaders; None if they do the same."""
    found = {name: list(batches_of(loader)) for name, loader in loaders.items()}
    shapes = {name: [tuple(image.shape) for image in batches] for name, batches in found.items()}
    if any(shape != shapes[OURS] for shape in shapes.values()):
        return f"batches differ: { {name: (len(shape), shape[:1]) for name, shape in shapes.items()} }"
    for what in (Tensor.mean, Tensor.std):
        values = {name: float(what(torch.cat(batches))) for name, batches in found.items()}
        if not max(values.values()) - min(values.values()) <= TOLERANCE:
            return f"images differ: {what.__name__} { {name: round(x, 3) for name, x in values.items()} }"
    return None


if __name__ == "__main__":
    sys.exit(run(main))
