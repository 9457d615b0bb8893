"""Image classification: one DataModule for the data sets that timm reads, and some that it does not."""

import os
import re
from pathlib import Path
from typing import Any, get_args

from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.data.dataset import IterableImageDataset
from torch import Tensor
from torch.utils.data import Dataset

from visionattn.checks import check_choice, check_range
from visionattn.data.balance import count_classes, weigh_images
from visionattn.data.class_map import ClassMap, read_class_map
from visionattn.data.columns import TableOptions
from visionattn.data.dominoes import SIZE
from visionattn.data.errors import DataError
from visionattn.data.folders import check_readable
from visionattn.data.image_cache import ImageCache, check_cache
from visionattn.data.images import Mode, image_mode
from visionattn.data.labels import LabelledFiles, split_rows
from visionattn.data.loading import Collate, ImageDataset, ImageLoader, Item, OnError, StreamDataset
from visionattn.data.module import Balance, ImageData
from visionattn.data.options import ImageSize, Preparation
from visionattn.data.sources import ITERABLE, REMOTE, ImageSource, Source, some
from visionattn.data.splits import FOLDERS, SplitOpener
from visionattn.data.streams import stream_workers
from visionattn.data.unlabelled import Images, open_unlabelled
from visionattn.output import write_csv

SIZES: dict[str, ImageSize] = {"digits": 32, "mnist": 28, "dominoes": SIZE}
"""Edge in pixels, or height and width, of the embedded and small data sets; other images are resized to 224."""
TORCH_FOLDERS = ("torch/folder", "torch/image_folder")
"""Other names of ``folder``; torchvision's own reader would take hidden folders for classes."""


class ImageClassificationData(ImageData):
    """Images with class labels: loaders for training, validation, testing and prediction.

    Splits are found by name under ``root``: ``train`` or ``training``; ``validation``, ``val``, ``valid`` or otherwise
    ``test``. Each is a folder (or a ``.tar``) of class folders. For ``predict`` the root is any folder of images.
    Every format that Pillow decodes is read. Hidden files, system files and files that are not images are skipped and
    counted in a warning.

    The defaults of ``img_size``, ``in_chans``, ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode`` are
    for training from scratch. If ``train.py`` starts from pretrained weights, it takes missing values from them.

    Args:
        name: ``digits`` (embedded; the default without a root), ``mnist``, ``dominoes`` (digits above photos, two cues
            that agree in 95% of the training images; ``dominoes/0.8`` for 80%; those of the split ``conflicts`` never
            agree), ``cub200``, ``stanford_cars``, ``fgvc_aircraft``, ``folder`` (the default with a root or labels), a
            data set of torchvision (``torch/food101``, ``torch/dtd/3``, …) or of timm: ``hfds/NAME``, ``hfids/NAME``,
            ``wds/NAME``, ``tfds/NAME``.
        root: folder of images or ``.tar`` file; for ``mnist`` the folder with ``MNIST/raw/*-ubyte`` or
            ``*-ubyte.gz``; for ``dominoes`` also ``cifar10/{train,test}/CLASS``, or torchvision's download; for other
            data sets the folder of their downloads.
        train_split: name of the training split, if it is not one of the usual names.
        val_split: name of the validation split, if it is not one of the usual names.
        test_split: name of the test split; without one the validation split is tested.
        num_classes: number of classes, if the data set does not say it (webdataset).
        download: download a missing data set with torchvision or timm.
        limit_per_class: number of training images per class, the first after shuffling with the seed; by default all.
        holdout_per_class: validate on this number of training images per class, and train on the others. The
            held-out images do not depend on the seed. The best epoch is then chosen without the test images.
        val_share: the same with this share of the images of each class, at least one; the data set may then be one
            without splits, a folder of class folders or a ``.tar`` of them.
        class_map: classes of folders, or of labels, whose names are not the model's, such as ``{plane: airplane}``, or
            a YAML or JSON file with that mapping. Folders of one class are merged. For a model without class names, a
            class is the number of an output.
        labels: CSV or TSV file with the labels of the images under ``root`` (by default under the table's folder). Its
            columns: ``path``, ``label``, and if you like ``split`` (train, val or test). Without a split column, give
            ``val_labels`` or ``val_share``.
        val_labels: table of the validation images, if they are not in ``labels``.
        test_labels: table of the test images, by default ``val_labels`` or ``labels``.
        path_column: column of image files, by default ``path``, ``file``, ``image``, … or the first one.
        label_column: column of labels, by default ``label``, ``class``, ``target``, … or the only one left; or a list
            of columns with 0 or 1, one for each class.
        label_separator: characters between the labels of an image, by default ``|`` or ``;``.
        multi_label: whether an image may have any number of labels; by default if each class has a column of 0 and 1.
        balance: for classes with few images: ``none``; ``weights`` in the loss; or ``sampler``, which draws training
            images with replacement so that all classes are equally likely, in epochs of the same length. Of several
            classes of an image, the rarest one counts.
        batch_size: images per step and per device.
        eval_batch_size: images per step and per device in evaluation, by default ``batch_size``.
        num_workers: loader processes per device, by default the number of cores, at most 8; 0 for digits.
        cache: 10⁹ bytes of memory, at most, in which a training keeps decoded images; 0, the default, for none. The
            loader processes of a device share it, and the devices of a machine divide it. Images that do not fit are
            read from their files in each epoch. A line says how many are kept.
        aug_repeats: number of times that each image is drawn per epoch, whose length does not change; 0 or 1 for once.
        on_error: for an image that cannot be decoded: ``raise`` stops with its name; ``skip`` counts it, and replaces
            it by another image in training.
        seed: seed of shuffling and augmentation, by default that of ``seed_everything``.
        **preparation: size, normalisation and augmentation, see :class:`~visionattn.data.options.Preparation`.

    Raises:
        DataError: an option does not fit; in ``setup``, if data are missing or not as expected.
    """

    weights_decide = frozenset({"input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"})

    def __init__(
        self,
        name: str | None = None,
        root: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        num_classes: int | None = None,
        download: bool = False,
        limit_per_class: int | None = None,
        holdout_per_class: int | None = None,
        val_share: float | None = None,
        class_map: ClassMap = None,
        labels: str | None = None,
        val_labels: str | None = None,
        test_labels: str | None = None,
        path_column: str | None = None,
        label_column: list[str] | str | None = None,
        label_separator: str | None = None,
        multi_label: bool | None = None,
        balance: Balance = "none",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        cache: float = 0.0,
        aug_repeats: int = 0,
        on_error: OnError = "raise",
        seed: int | None = None,
        **preparation: Any,
    ) -> None:
        self.name: str = name or ("folder" if root or labels else "digits")
        if self.name in TORCH_FOLDERS:
            self.name = "folder"
        in_memory = self.name == "digits"
        super().__init__(
            batch_size, eval_batch_size, 0 if in_memory and num_workers is None else num_workers, on_error, seed
        )
        if self.name == "digits" and root:
            raise DataError(f"--data.name digits takes no --data.root ({root}): for images in a folder use folder")
        check_range("data.num_classes", num_classes, 1, error=DataError)
        check_cache(cache)
        if cache and self.name.partition("/")[0].lower() in ITERABLE:
            raise DataError(f"data set {self.name!r} is read in order: leave out --data.cache {cache:g}")
        check_range("data.aug_repeats", aug_repeats, 0, error=DataError)
        check_choice("data.balance", balance, get_args(Balance), error=DataError)
        if balance == "sampler" and aug_repeats > 1:
            raise DataError(f"--data.balance sampler draws images anyway: leave out --data.aug_repeats {aug_repeats}")
        self.root = root and os.path.expanduser(root)  # noqa: PTH111  it may be an address
        self.splits = {"train": train_split, "validation": val_split, "test": test_split}
        self.cache, self.aug_repeats = cache, aug_repeats
        self.holdout_per_class, self.val_share = holdout_per_class, val_share
        self._given_num_classes = num_classes
        self.class_map = read_class_map(class_map)
        if self.class_map and self.name not in FOLDERS:
            raise DataError(f"--data.class_map is for folders of images: {self.name} has classes of its own")
        self.balance = balance
        tables = LabelledFiles.from_options(
            self.name,
            self.root,
            {"train": labels, "validation": val_labels, "test": test_labels},
            TableOptions(path_column, label_column, label_separator, multi_label),
        )
        self.opener = SplitOpener(
            self.name,
            self.root,
            self.splits,
            tables,
            self.class_map,
            download,
            limit_per_class=limit_per_class,
            holdout_per_class=holdout_per_class,
            val_share=val_share,
        )
        self._sources: dict[str, ImageSource | IterableImageDataset] = {}
        self.preparation = Preparation(**preparation)
        self.preprocessing = self.preparation.preprocessing(SIZES.get(self.name.partition("/")[0], 224))
        self._transforms = [self.preparation.make_transform(self.preprocessing, training) for training in (False, True)]

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the class indices; known after ``setup``, empty for images to predict."""
        if self._expected is not None:
            return self._expected
        for split, source in self._sources.items():
            numbering = None if split == "predict" else _class_to_idx(source)
            if numbering:
                return sorted(map(str, numbering), key=lambda name: numbering[name])
        if "predict" in self._sources:
            return []
        if self._given_num_classes is None:
            raise DataError(f"data set {self.name!r} does not say its classes: pass --data.num_classes N")
        return [str(index) for index in range(self._given_num_classes)]

    def expect_head(self, names: list[str], num_classes: int) -> None:
        """Number the classes as a head does; outputs without names are numbers, which a class map may name."""
        self.expect_classes(names or ([str(number) for number in range(num_classes)] if self.class_map else []))

    def check_head(self, model: str, num_classes: int, multi_label: bool = False) -> None:
        """Check that the classes of the data are those of a trained head; to be called after ``setup``.

        Raises:
            DataError: there are others, or one head has several labels per image and the other not.
        """
        if self.multi_label != multi_label:
            known, found = ("several labels", "one") if multi_label else ("one label", "several")
            raise DataError(
                f"{model} was trained on images with {known} each, those of {self.name!r} have {found}: evaluate on "
                "images with labels as in the training"
            )
        names = self.class_names
        # If the head's names are known, folders have been matched with them, and the head may have more classes.
        if len(names) > num_classes or (self._expected is None and len(names) != num_classes):
            raise DataError(
                f"data set {self.name!r} has {len(names)} classes, the head of {model} has {num_classes}: evaluate on "
                "the data set that it was trained for, or name the number of each folder's output in --data.class_map"
            )
        # The outputs' own numbers, or ImageNet's classes, whose order is that of their names.
        telling = all(name == str(number) or re.fullmatch(r"n\d{8}", name) for number, name in enumerate(names))
        if self._expected is None and self.name in FOLDERS and not telling:
            taken = ", ".join(f"{name} for output {number}" for number, name in enumerate(names[:2]))
            rank_zero_warn(
                f"{model} does not say its classes: {taken}, and so on, are a guess by the order of names; where it is "
                "wrong, pass --data.class_map"
            )

    @property
    def item_shape(self) -> tuple[int, int, int]:
        """Shape that the loaders yield: (C, H, W) of images, or (C, 1, H·W) of sequences."""
        channels, height, width = super().item_shape
        return (channels, height, width) if self.preparation.sequence is None else (channels, 1, height * width)

    def reuse_lists(self, other: "ImageClassificationData") -> None:
        """Take the lists of files and labels that another module of the same data has read."""
        self.opener.listings, self.opener.tables = other.opener.listings, other.opener.tables

    def setup(self, stage: str) -> None:
        """Open the splits that ``stage`` (fit, validate, test, predict) needs."""
        if stage == "predict":
            self._sources = {"predict": self._open_for_prediction()}
            return
        wanted = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}[stage]
        if self.tables is not None:
            if stage == "fit" and not self.opener.holds_out:
                self.tables.check_divided()
            self.multi_label = self.tables.multi_label(wanted)
        numbering = None if self._expected is None else {name: index for index, name in enumerate(self._expected)}
        for split in wanted:
            if split in self._sources:
                continue
            source = self._open(split, numbering)
            if numbering is None and split == "train" and self.name in FOLDERS:
                numbering = dict(_class_to_idx(source) or {})
                preferred = {name: index for index, name in enumerate(self.preferred_classes)}
                if preferred.keys() == numbering.keys() and preferred != numbering:
                    self.expect_classes(self.preferred_classes)
                    numbering, source = preferred, self._open(split, preferred)
            if self.balance != "none" and split == "train" and isinstance(source, IterableImageDataset):
                raise DataError(f"data set {self.name!r} is read in order: leave out --data.balance {self.balance}")
            self._sources[split] = source
            self._compare_classes(split, source)
        if stage == "fit" and self.root and Path(self.root).is_file() and not self.opener.holds_out:
            rank_zero_warn(f"{self.root} has no splits: the training images are also the validation images")

    def _open(self, split: str, numbering: dict[str, int] | None) -> ImageSource | IterableImageDataset:
        return self.opener.open(split, numbering, self.seed, mode=self._mode, batch_size=self.batch_size)

    @property
    def tables(self) -> LabelledFiles | None:
        """Return the tables with labels, if there are any."""
        return self.opener.tables

    @property
    def divides_itself(self) -> bool:
        """Return whether there are no validation images of their own, so that they are held out here."""
        return self.opener.divides_itself

    def _compare_classes(self, split: str, source: ImageSource | IterableImageDataset) -> None:
        """Check that a source numbers its classes as the training split does."""
        found = _class_to_idx(source)
        if not found:
            return
        if self._given_num_classes not in (None, len(found)):
            raise DataError(
                f"data set {self.name!r} has {len(found)} classes, not {self._given_num_classes}: leave out "
                "--data.num_classes"
            )
        if sorted(map(str, found), key=lambda name: found[name]) != self.class_names:
            raise DataError(f"the {split} split of {self.name!r} has other classes than expected: {some(list(found))}")

    @property
    def _mode(self) -> Mode:
        return image_mode(self.preprocessing["input_size"][0])

    def _open_for_prediction(self) -> ImageSource:
        if self.name in REMOTE or not self.root:
            raise DataError("predict needs --data.root FOLDER, any folder of images")
        check_readable(Path(self.root))
        return open_unlabelled([self.root], self._mode)

    def setup_images(self, images: Images) -> None:
        """Predict these images, files or folders in place of those under ``root``, in their order."""
        self._sources = {"predict": open_unlabelled(images, self._mode)}

    def class_counts(self) -> Tensor:
        """Return the number of training images of each class, [K]; known after ``setup("fit")``."""
        return count_classes(self._random_access("train").targets(), self.num_classes)

    def _random_access(self, split: str) -> ImageSource:
        source = self._sources[split]
        if isinstance(source, IterableImageDataset):
            raise DataError(f"data set {self.name!r} is read in order: its images cannot be counted or listed")
        return source

    def write_split(self, path: str | Path) -> None:
        """Write the images of the open splits to a CSV file, which ``--data.labels`` reads.

        Its paths are relative to ``root`` if there is one. Images with several classes have a column for each class.
        """
        sources = {split: self._random_access(split) for split in self._sources}
        write_csv(list(split_rows(sources, self.class_names, self.root)), path)

    def predict_dataloader(self) -> ImageLoader:
        """Return the loader of every image under ``root``, in any folder."""
        return self._keep("predict")

    def num_images(self, split: str) -> int | None:
        """Return the number of images of a split, known after ``setup``; None for a stream that does not say it."""
        source = self._sources[split]
        return source.reader.num_samples if isinstance(source, IterableImageDataset) else len(source)

    def describe(self) -> str:
        """Return the name of the data set and the sizes of its splits, in words."""
        counts = {split: self.num_images(split) for split in self._sources}
        sizes = ", ".join(f"{f'{count:,}' if count else 'any number of'} {split}" for split, count in counts.items())
        where = self.root if self.name == "folder" else self.name
        if self.tables is not None and "predict" not in self._sources:
            where = str(self.tables.files[next(iter(self._sources))])
        form = "" if self.preparation.sequence is None else f", as sequences of {self.item_shape[-1]:,} pixels"
        labels = ", any number per image" if self.multi_label else ""
        return f"{where}: {sizes} images of {self.num_classes} classes{labels}{form}"

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch to a data set that is read in order; Lightning tells the samplers of others."""
        source = self._sources.get("train")
        if isinstance(source, IterableImageDataset):
            source.set_epoch(epoch)

    def _enter(self, source: IterableImageDataset) -> None:
        """Begin the epoch of a resumed run; Lightning asks for images before it tells the epoch."""
        epoch, batches = self.start
        source.set_epoch(epoch)
        if batches:
            rank_zero_warn(
                f"data set {self.name!r} is read in order: what is left of epoch {epoch + 1} after {batches} batches "
                "draws on its images from the first on, not on those that were yet to come"
            )

    def _cached(self, split: str, source: ImageSource) -> Source:
        """Return the source with decoded images in memory, if the user asks for it and they are read in each epoch."""
        if not self.cache or "train" not in self._sources or split == "test":
            return source
        if self.image_cache is None:
            processes = self.trainer.num_devices if self.trainer else 1
            self.image_cache = ImageCache(int(self.cache * 1e9) // processes)
        return self.image_cache.wrap(split, source)

    def loader(self, split: str) -> ImageLoader:
        """Make the loader of a split; of ``predict``, of every image under ``root``."""
        training = split == "train"
        source = self._sources[split]
        transform = self._transforms[training]
        options = self.worker_options
        dataset: Dataset[Item]
        if isinstance(source, IterableImageDataset):
            rank, world = self.shard
            dataset = StreamDataset(source, transform, training, rank, world)
            if training:
                options["num_workers"] = stream_workers(self.name, source, self.num_workers, world)
                self._enter(source)
            source.set_loader_cfg(num_workers=options["num_workers"])
            options["batch_size"] = self.batch_size if training else self.eval_batch_size
        else:
            replace_broken = training and self.on_error == "skip"
            dataset = ImageDataset(self._cached(split, source), transform, replace_broken)
            weights = weigh_images(source.targets()) if training and self.balance == "sampler" else None
            options |= self.batches(len(source), training, self.aug_repeats, weights)
        num_classes = None if split == "predict" else self.num_classes
        num_labels = num_classes if self.multi_label else None
        options["collate_fn"] = Collate(self.item_shape, self.normalisation, num_labels)
        return ImageLoader(dataset, self.on_error, num_classes, **options)


def _class_to_idx(source: Any) -> Any:
    return getattr(source, "class_to_idx", None) or getattr(getattr(source, "reader", None), "class_to_idx", None)
