"""Re-identification: one DataModule for the published data sets, folders like them, and the embedded identities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from torch import Tensor

from visionattn.checks import check_range
from visionattn.data.drawing import single_threaded
from visionattn.data.errors import DataError
from visionattn.data.loading import Collate, ImageDataset, ImageLoader, Item, OnError
from visionattn.data.module import ImageData
from visionattn.data.normalisation import Normalisation, move_batch
from visionattn.data.options import check_augmentation, make_preprocessing
from visionattn.data.pk_sampler import PKBatchSampler
from visionattn.data.reid.identities import Identities
from visionattn.data.reid.identity_folders import VAL_SHARE, IdentityFolders, check_camera, find_layout, is_divided
from visionattn.data.reid.layouts import LAYOUTS, Layout, Options, Protocol, ReidImage, Split
from visionattn.data.reid.source import ReidSource
from visionattn.data.reid.transforms import reid_transform
from visionattn.data.sources import few, some
from visionattn.data.transforms import MAX_SIZE
from visionattn.io import as_text
from visionattn.output import write_csv
from visionattn.words import counted

DATASETS: dict[str, Layout | Identities | IdentityFolders] = {
    "identities": Identities(),
    **LAYOUTS,
    "folder": IdentityFolders(),
}
GALLERY_SIZES = (800, 1600, 2400)
EVALUATION: tuple[Split, ...] = ("query", "gallery")


class ReidBatch(NamedTuple):
    """A batch, as every loader yields it.

    Attributes:
        image: images [B, C, H, W], bytes or normalised floats; B is smaller than the batch size, or 0, if images were
            left out.
        target: [B], in training the numbers of the identities from 0, in evaluation the identities themselves.
        camera: [B], by the data set's own numbers.
        index: positions in the split [B]; in evaluation the queries come first, then the gallery.
        name: file names, B of them.
        errors: one line for each broken image.
        normalisation: of images that are bytes.
    """

    image: Tensor
    target: Tensor
    camera: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    name: list[str]
    errors: list[str]
    normalisation: Normalisation | None = None

    def to(self, device: torch.device | str) -> "ReidBatch":
        """Return the batch on a device, with normalised images; Lightning calls this."""
        return move_batch(self, device)


class ReidCollate(Collate):
    """Collation of the images that could be read to a :class:`ReidBatch`.

    Args:
        input_size: (C, H, W), for empty batches.
        cameras: of all images of the split.
        normalisation: of images that are bytes.
    """

    def __init__(
        self, input_size: tuple[int, int, int], cameras: Sequence[int], normalisation: Normalisation | None = None
    ) -> None:
        super().__init__(input_size, normalisation)
        self.cameras = torch.tensor(cameras, dtype=torch.long)

    def __call__(self, items: Sequence[Item]) -> ReidBatch:  # type: ignore[override]  # more of the same
        """Stack the items that have an image."""
        batch = super().__call__(items)
        index = torch.tensor([item.index for item in items if item.image is not None], dtype=torch.long)
        cameras = self.cameras[index]
        return ReidBatch(batch.image, batch.target, cameras, index, batch.name, batch.errors, batch.normalisation)


class ReidData(ImageData):
    """Images of people or vehicles by several cameras: for training P identities × K images, query and gallery.

    Nothing is downloaded. Validation and test are the same: one loader over the queries and then the gallery.

    Args:
        name: ``identities`` (embedded; the default without a root), ``folder`` (a folder for each identity),
            ``market1501`` (any folder in its layout), ``dukemtmc``, ``occluded-duke``, ``msmt17`` (either version),
            ``veri776`` or ``vehicleid``. With a root the default is what is found there.
        root: folder of the data set, or the folder above it.
        train_val: also train on MSMT17's validation images.
        gallery_size: evaluate on VehicleID's list of 800 identities (the default), 1600 or 2400.
        val_share: share of the identities of ``folder`` to evaluate on, at least two, by default 0.2; 1 for all.
        camera: regular expression for the camera, in parentheses, in the names of images of ``folder``, such as
            ``_c([0-9]+)``. Images of a query's identity by the query's camera are then no matches.
        height: height in pixels, by default 256, and 64 for the embedded images.
        width: width in pixels, by default 128 for people, 256 for vehicles, and 32 for the embedded images.
        batch_size: images per step and per device, P·K.
        instances: K, images of each identity in a batch.
        eval_batch_size: images per step in evaluation, by default ``batch_size``.
        num_workers: loader processes per device, by default the number of cores, at most 8; 0 for the embedded images.
        mean: mean of each channel, by default 0.5.
        std: standard deviation of each channel, by default 0.5.
        interpolation: interpolation of the resizing: ``bicubic`` (the default), ``bilinear``, ``nearest``, ….
        hflip: probability of a horizontal flip.
        padding: black pixels added on each side before a random crop; by default 10, and 3 for the embedded images; 0
            for no crop.
        re_prob: probability of random erasing.
        re_mode: content of erased rectangles: ``const`` (zeros), ``rand`` (one colour) or ``pixel`` (noise).
        on_error: for an image that cannot be decoded: ``raise`` stops with its name; ``skip`` counts it, and replaces
            it by another image in training.
        seed: seed of shuffling and augmentation, by default that of ``seed_everything``.

    Raises:
        DataError: an option does not fit; in ``setup``, if data are missing or not as expected.
    """

    # The image size is that of people or vehicles; models are resized to it.
    weights_decide = frozenset({"mean", "std", "interpolation"})

    def __init__(
        self,
        name: str | None = None,
        root: str | None = None,
        train_val: bool = False,
        gallery_size: int | None = None,
        val_share: float | None = None,
        camera: str | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 64,
        instances: int = 4,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: str | None = None,
        hflip: float = 0.5,
        padding: int | None = None,
        re_prob: float = 0.5,
        re_mode: str = "pixel",
        on_error: OnError = "raise",
        seed: int | None = None,
    ) -> None:
        self.root = root and str(Path(root).expanduser())
        self.name: str = name or (find_layout(Path(self.root)) if self.root else "identities")
        if self.name not in DATASETS:
            raise DataError(f"unknown data set {self.name!r} for re-identification: one of {', '.join(DATASETS)}")
        self.layout = DATASETS[self.name]
        embedded = self.name == "identities"
        self.worker_setup = single_threaded if embedded else None
        super().__init__(
            batch_size, eval_batch_size, 0 if embedded and num_workers is None else num_workers, on_error, seed
        )
        if embedded and root:
            raise DataError(f"--data.name identities takes no --data.root ({root})")
        if not embedded and not root:
            raise DataError(f"--data.name {self.name} needs --data.root FOLDER. {self.layout.obtain}")
        if instances < 2 or batch_size % instances or batch_size < 2 * instances:
            raise DataError(
                f"--data.batch_size {batch_size} must be a multiple of --data.instances {instances}, which is at least "
                "2, and hold at least two identities"
            )
        if train_val and self.name != "msmt17":
            raise DataError(f"--data.train_val is for msmt17: {self.name} has no validation images of its own")
        if gallery_size is not None and (self.name != "vehicleid" or gallery_size not in GALLERY_SIZES):
            raise DataError(
                f"--data.gallery_size is for vehicleid, one of {', '.join(map(str, GALLERY_SIZES))}: "
                f"got {gallery_size} for {self.name}"
            )
        for option, value in (("val_share", val_share), ("camera", camera)):
            if value is not None and self.name != "folder":
                raise DataError(f"--data.{option} is for a folder for each identity, not for {self.name}")
        check_range("data.val_share", val_share, 0, 1, above=True, error=DataError)
        if camera is not None:
            check_camera(camera)
        if self.name == "folder" and not is_divided(Path(self.root or "")):
            val_share = VAL_SHARE if val_share is None else val_share
        elif val_share is not None:
            raise DataError(f"{root} has a query and a gallery of its own: leave out --data.val_share {val_share}")
        padding = (3 if embedded else 10) if padding is None else padding
        height = self.layout.size[0] if height is None else height
        width = self.layout.size[1] if width is None else width
        for what, edge in (("height", height), ("width", width)):
            check_range(f"data.{what}", edge, 1, MAX_SIZE, error=DataError)
        self.instances, self.val_share, self.camera = instances, val_share, camera
        self.splits: dict[str, str | None] = {"train": None, "validation": None, "test": None}
        self.dataset_options = Options(train_val, gallery_size or GALLERY_SIZES[0], val_share, camera)
        published = (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)
        self.preprocessing = make_preprocessing(
            (3, height, width), mean, std, interpolation, crop_mode="squash", statistics=published
        )
        self.augmentation: dict[str, Any] = {
            "hflip": hflip,
            "padding": padding,
            "re_prob": re_prob,
            "re_mode": re_mode,
        }
        check_augmentation(self.augmentation, width)
        self._images: dict[Split, list[ReidImage]] = {}

    @property
    def class_names(self) -> list[str]:
        """Training identities in the order of their numbers; known from their images or from a checkpoint."""
        if self._expected is not None:
            return self._expected
        self._list("train")
        return [label for _, label in sorted({(image.pid, image.label) for image in self._images["train"]})]

    @property
    def num_query(self) -> int:
        """Number of queries, which come first in the evaluation; known after ``setup``."""
        return len(self._images["query"])

    @property
    def divides_itself(self) -> bool:
        """Return whether identities to evaluate on are held out here, as there is no query and gallery."""
        return self.val_share is not None

    @property
    def protocol(self) -> Protocol:
        """``camera`` for query and gallery by several cameras; ``vehicleid`` for a gallery drawn from all images."""
        return self.layout.protocol

    def setup(self, stage: str) -> None:
        """List the images that ``stage`` (fit, validate or test) needs."""
        if stage == "predict":
            raise DataError("re-identification ranks images, it predicts no classes: use eval.py reid")
        self._list(*(("train",) if stage == "fit" else ()), *EVALUATION)
        if stage == "fit":
            self._compare_classes()
        elif self.divides_itself:
            self._warn_of_trained()

    def _list(self, *splits: Split) -> None:
        """List splits that are not yet listed; warn once of differences from the published data set."""
        new = [split for split in splits if split not in self._images]
        for split in new:
            self._images[split] = self.layout.images(Path(self.root or ""), split, self.dataset_options)
        differing = [self.layout.compare(split, self._images[split], self.dataset_options) for split in new]
        if any(differing):
            rank_zero_warn(
                f"{self.root} is not the whole of {self.layout.title}, or other images in its layout: "
                f"{', '.join(filter(None, differing))}"
            )

    def _check_matches(self) -> None:
        """Check that there is something to measure; otherwise this would show once all features are extracted."""
        if self.protocol != "camera":
            return
        cameras: dict[int, set[int]] = {}
        for image in self._images["gallery"]:
            cameras.setdefault(image.pid, set()).add(image.camera)
        queries = self._images["query"]
        if not any(cameras.get(image.pid, set()) - {image.camera} for image in queries):
            number = len(set().union(*cameras.values()))
            raise DataError(
                f"none of the {len(queries)} queries of {self.root or self.name} has a match in the gallery, which is "
                f"an image of its identity by another camera; the gallery has {counted(number, 'camera')}"
            )

    def _compare_classes(self) -> None:
        """Check that a resumed checkpoint was trained on these identities."""
        found = {image.label for image in self._images["train"]}
        if strange := sorted(found.symmetric_difference(self.class_names)):
            raise DataError(
                f"the training identities are not those of the checkpoint: {some(strange)} on one side only. "
                "--model.checkpoint_path starts a new training from its weights"
            )

    def _warn_of_trained(self) -> None:
        """Warn if the checkpoint was trained on identities that are now to be evaluated on."""
        trained = set(self._expected or ())
        if known := sorted({image.label for image in self._images["query"] if image.label in trained}):
            rank_zero_warn(
                f"the model was trained on {len(known)} of the {self.num_query} identities to look for ({few(known)}): "
                "pass --data.val_share as in its training; folders that were added since may also be the reason"
            )

    def write_split(self, path: str | Path) -> None:
        """Write the listed images with identities and splits to a CSV file; paths are relative to ``root``."""
        rows = []
        for split, images in self._images.items():
            for image in images:
                name = as_text(str(Path(image.name).relative_to(self.root or "")))
                rows.append({"path": name, "identity": image.label, "split": split})
        write_csv(rows, path)

    def loader(self, split: str) -> ImageLoader:
        """Make the loader of a split: batches of P identities to train on; otherwise every query, then the gallery."""
        training = split == "train"
        if training:
            numbers = {name: number for number, name in enumerate(self.class_names)}
            source = ReidSource(self._images["train"], self.layout.open, numbers)
            identities = self.batch_size // self.instances
            sampler = PKBatchSampler(
                source.targets(), identities, self.instances, self.seed, *self.shard, start=self.start
            )
            options: dict[str, Any] = {"batch_sampler": sampler}
        else:
            self._check_matches()
            source = ReidSource([image for part in EVALUATION for image in self._images[part]], self.layout.open)
            options = self.batches(len(source), training=False)
        transform = reid_transform(self.preprocessing, self.augmentation if training else None)
        return ImageLoader(
            ImageDataset(source, transform, replace_broken=training and self.on_error == "skip"),
            self.on_error,
            **self.worker_options,
            collate_fn=ReidCollate(self.item_shape, source.cameras(), self.normalisation),
            **options,
        )

    def describe(self) -> str:
        """Return the name of the data set and the sizes of its splits, in words."""
        parts = []
        if "train" in self._images:
            parts.append(f"{len(self._images['train']):,} train images of {self.num_classes:,} identities")
        if "gallery" in self._images:
            queries = f"{counted(self.num_query, 'query', 'queries')} and " if self.num_query else ""
            distractors = set() if self.layout.zero_counts else {0}
            seen = len({image.pid for image in self._images["gallery"]} - distractors)
            parts.append(f"{queries}{len(self._images['gallery']):,} gallery images of {seen:,} identities")
            if self.divides_itself:
                parts[-1] += f" (--data.val_share {self.val_share})"
        return f"{self.root or self.name}: {', '.join(parts)}"
