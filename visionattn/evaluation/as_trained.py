"""Data sets for a trained model: preprocessed and numbered as in its training, unless options say otherwise."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

from visionattn.data import DataError, ImageClassificationData, ReidData
from visionattn.data.class_map import ClassMap
from visionattn.data.loading import OnError
from visionattn.data.own_transform import warn_of_own_transform
from visionattn.data.scenes import SceneData
from visionattn.data.scenes.opening import SceneName
from visionattn.data.unlabelled import Images
from visionattn.training import ModelSpec

Stage = Literal["validate", "fit", "predict"]
"""The validation split alone, the training split also, or images without labels."""


@dataclass(frozen=True)
class DataOptions:
    """Options of every data set.

    Args:
        name: name of the data set, as for train.py.
        root: folder of the data set.
        batch_size: images per step.
        num_workers: loader processes.
        on_error: for an image that cannot be read: raise names it and stops, skip leaves it out and counts it.
    """

    name: str | None = None
    root: str | None = None
    batch_size: int = 128
    num_workers: int | None = None
    on_error: OnError = "raise"


@dataclass(frozen=True)
class PreparedImages(DataOptions):
    """Options of every set of images with classes; by default the preprocessing is the model's own.

    Args:
        name: data set as for train.py: digits, folder, torch/cifar10, hfds/NAME, …
        root: folder of images; for other data sets, the folder of downloads.
        download: let torchvision or timm download a missing data set.
        val_share: the share of the images of each class that training held out, or, for a data set without splits, that
            is to be evaluated on.
        img_size: height and width in pixels.
        crop_pct: part of the resized image's edge that is kept.
        interpolation: bicubic, bilinear, nearest, …
        labels: CSV or TSV file with the labels of the images under root, or under its own folder if no root is given.
        path_column: column of image files, by default path, file, image, … or the first one.
        label_column: column of labels, by default label, class, target, … or the only one left; or a list of columns
            with 0 or 1, one for each class.
    """

    download: bool = False
    val_share: float | None = None
    img_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    labels: str | None = None
    path_column: str | None = None
    label_column: list[str] | str | None = None


@dataclass(frozen=True)
class ImageOptions(PreparedImages):
    """Images to classify; by default data set and preprocessing are those of the training.

    More arguments: `PreparedImages` and `DataOptions`.

    Args:
        name: data set as for train.py: digits, folder, torch/cifar10, hfds/NAME, wds/NAME, …
        split: name of the split, by default the one that training validates on.
        num_classes: number of classes, for data sets that do not say it.
        class_map: classes of folders whose names are not the model's, as {plane: airplane}, or a YAML or JSON file with
            that; for a model that does not know its classes, a class is the number of an output.
        holdout_per_class: evaluate on this number of images of each class, which training held out.
        label_separator: characters between the labels of an image in a table, by default | or ;.
        multi_label: whether an image may have any number of labels; by default if each class has a column of 0 and 1.
        transform: import path of your own transform, as for train.py.
    """

    split: str | None = None
    num_classes: int | None = None
    class_map: ClassMap = None
    holdout_per_class: int | None = None
    label_separator: str | None = None
    multi_label: bool | None = None
    transform: str | None = None


@dataclass(frozen=True)
class IdentityOptions(DataOptions):
    """Queries and gallery for re-identification; by default data set and size are those of the training.

    More arguments: `DataOptions`.

    Args:
        name: data set as for train.py --task reid: identities, folder, market1501, dukemtmc, occluded-duke, msmt17,
            veri776 or vehicleid.
        gallery_size: number of identities in the test set of VehicleID: 800, 1600 or 2400.
        val_share: share of the identities in a folder to evaluate on, as in the training, by default 0.2; 1 for all.
        camera: regular expression for the camera, in parentheses, in the names of a folder's images.
        height: in pixels.
        width: in pixels.
    """

    gallery_size: int | None = None
    val_share: float | None = None
    camera: str | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class SceneOptions(DataOptions):
    """Scenes with segments, which are images here; by default data set and size are those of the training.

    More arguments: `DataOptions`.

    Args:
        name: synthetic, coco_panoptic, ade20k, folder or semantic_folder.
        split: name of the split, by default the one for validation.
        limit: number of scenes to use, the first ones; by default all.
        max_objects: synthetic scenes have 2 to this number of objects.
        textured: some synthetic objects and backgrounds have patterns.
    """

    name: SceneName | None = None
    batch_size: int = 64
    split: str | None = None
    limit: int | None = None
    max_objects: int = 6
    textured: bool = True


def prepare_images(spec: ModelSpec, options: PreparedImages) -> dict[str, Any]:
    """Return the preprocessing of a model, with the values that the options set."""
    trained = spec.preprocessing
    channels, height, width = trained["input_size"]
    size = (height, width) if options.img_size is None else (options.img_size, options.img_size)
    given = {"interpolation": options.interpolation, "crop_pct": options.crop_pct}
    kept = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "sequence", "permutation_seed")
    return {
        "input_size": (channels, *size),
        **{key: trained[key] for key in kept if trained.get(key) is not None},
        **{key: value for key, value in given.items() if value is not None},
    }


def open_images(
    spec: ModelSpec,
    options: Any,
    stage: Stage = "validate",
    *,
    preprocessing: Mapping[str, Any] | None = None,
    images: Images = (),
    **arguments: Any,
) -> ImageClassificationData:
    """Open images for a model.

    Args:
        spec: the model. For ``validate`` the classes of the data must be those of its head.
        options: `ImageOptions`, or a dataclass with other arguments of `ImageClassificationData`.
        stage: which splits.
        preprocessing: as from `prepare_images`, by default with the values in ``options``.
        images: for ``predict``, files and folders, or images in memory.
        **arguments: further arguments of `ImageClassificationData`.

    Raises:
        ValueError: data that are missing or that do not fit the model.
    """
    if preprocessing is None:
        preprocessing = prepare_images(spec, options)
    warn_of_own_transform(spec.preprocessing, getattr(options, "transform", None))
    channels, *size = preprocessing["input_size"]
    # Trained on embedded digits, but a folder is given: take the folder.
    elsewhere = options.labels or (options.root and spec.dataset == "digits")
    stored = None if elsewhere else spec.dataset or None
    prepared = {key: value for key, value in preprocessing.items() if key != "input_size"}
    prepared |= {key: list(preprocessing[key]) for key in ("mean", "std")}
    with _own_names(options, split="val_split") as given:
        module = ImageClassificationData(
            **given | {"name": options.name or stored, "img_size": size, "in_chans": channels} | prepared | arguments
        )
        if stage == "validate":
            module.expect_head(spec.class_names, spec.num_classes)
        if stage == "predict":
            module.setup_images(images)
        else:
            module.setup(stage)
        if stage == "validate":
            module.check_head(spec.model, spec.num_classes, spec.multi_label)
    return module


def open_identities(spec: ModelSpec, options: IdentityOptions) -> ReidData:
    """Open queries and gallery for a model.

    Raises:
        ValueError: data that are missing.
    """
    trained = spec.preprocessing
    _, height, width = trained["input_size"]
    fixed = {
        "name": identity_dataset(spec, options),
        "height": height if options.height is None else options.height,
        "width": width if options.width is None else options.width,
        "mean": list(trained["mean"]),
        "std": list(trained["std"]),
    }
    with _own_names(options, batch_size="eval_batch_size") as given:
        module = ReidData(**given | fixed)
        if spec.task == "reid":
            module.expect_classes(spec.class_names)
        module.setup("validate")
    return module


def identity_dataset(spec: ModelSpec, options: IdentityOptions) -> str | None:
    """Return the data set's name: the given one, or that of a re-identification training.

    None leaves it to the root: which of a data set's folders these are can be seen.
    """
    is_seen = options.root and spec.dataset in ("identities", "folder", "market1501")
    return options.name or (spec.dataset if spec.task == "reid" and not is_seen else None)


def open_scenes(
    spec: ModelSpec,
    options: Any,
    stage: Stage = "validate",
    *,
    preprocessing: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> SceneData:
    """Open scenes for a model.

    Args:
        spec: the model.
        options: `SceneOptions`, or a dataclass with other arguments of `SceneData`.
        stage: which splits.
        preprocessing: by default that of the model.
        **arguments: further arguments of `SceneData`; a ``name`` replaces that of options and training.

    Raises:
        ValueError: data that are missing or that do not fit the model.
    """
    wanted = spec.preprocessing if preprocessing is None else preprocessing
    fixed = {
        "name": options.name or (None if options.root else spec.dataset),
        "image_size": wanted["input_size"][-1],
        "mean": list(wanted["mean"]),
        "std": list(wanted["std"]),
        "interpolation": wanted["interpolation"],
        "crop_mode": wanted["crop_mode"],
    }
    with _own_names(options, split="val_split", img_size="image_size") as given:
        module = SceneData(**given | fixed | arguments)
        module.setup(stage)
    return module


@contextmanager
def _own_names(options: Any, **names: str) -> Iterator[dict[str, Any]]:
    """Give the fields of options as arguments of a data module, some of which have other names there.

    Errors of the data module then name the field of the options.
    """
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    names = {own: theirs for own, theirs in names.items() if own in given}
    try:
        yield {names.get(name, name): value for name, value in given.items()}
    except DataError as error:
        message = str(error)
        for own, theirs in names.items():
            message = message.replace(f"--data.{theirs}", f"--data.{own}")
        raise DataError(message) from error
