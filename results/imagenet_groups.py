"""Write the labels of a few wide groups for a folder of ImageNet images, so that few images are enough to train heads.

    python results/imagenet_groups.py --root data/imagenet-sample --output groups.csv

Folders are named by ImageNet's IDs, such as n01440764. The groups are ranges of ImageNet's 1,000 classes, in the order
of their IDs. Dogs are a group of their own, other mammals another one. Every fifth of the classes of artifacts is
taken, since they are half of ImageNet; plants, food, places and people are left out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from timm.data import ImageNetInfo

from visionattn.data.finding import image_extensions
from visionattn.output import write_csv

GROUPS = (
    ("fish", range(7)),
    ("bird", range(7, 25)),
    ("reptile or amphibian", range(25, 69)),
    ("invertebrate", range(69, 80)),
    ("bird", range(80, 101)),
    ("other mammal", range(101, 107)),
    ("invertebrate", range(107, 127)),
    ("bird", range(127, 147)),
    ("other mammal", range(147, 151)),
    ("dog", range(151, 269)),
    ("other mammal", range(269, 300)),
    ("invertebrate", range(300, 330)),
    ("other mammal", range(330, 389)),
    ("fish", range(389, 398)),
    ("artifact", range(400, 917, 5)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="images, in folders named by ImageNet's IDs")
    parser.add_argument("--output", type=Path, required=True, help="CSV file, for --data.labels")
    args = parser.parse_args(argv)
    names = ImageNetInfo().label_names()
    rows = [
        {"path": image.relative_to(args.root).as_posix(), "label": group}
        for group, classes in GROUPS
        for index in classes
        for image in sorted((args.root / names[index]).glob("*"))
        if image.suffix.lower() in image_extensions()
    ]
    if not rows:
        parser.error(f"no images in folders such as {args.root / names[0]}")
    write_csv(rows, args.output)
    print(f"{args.output}: {len(rows):,} images of {len({group for group, _ in GROUPS})} groups")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
