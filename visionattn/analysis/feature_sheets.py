"""The sheets of features and of gradients."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from visionattn.analysis.components import fit_colours, patch_features
from visionattn.analysis.saliency import default_layer, grad_cam, integrated_gradients, saliency_map, smooth_gradients
from visionattn.analysis.subject import LookOptions, NoSheetError, Subject
from visionattn.errors import UserError
from visionattn.evaluation.classification import require_classes
from visionattn.evaluation.prediction import name_classes
from visionattn.probing.classifier import ProbeClassifier
from visionattn.probing.features.splits import freeze
from visionattn.probing.frozen import FrozenBackbone, Layer
from visionattn.suggestions import did_you_mean

if TYPE_CHECKING:
    from visionattn.viz.image import Pixels

MIN_GRID = 8  # rows and columns of patches
BLUR = 1.0  # standard deviation in pixels; gradients of strided layers are chequered
BRIGHTEST = 99.5  # percentile of the saliency of pixels that has the brightest colour


def draw_pca(subject: Subject, options: LookOptions) -> "Pixels":
    """Draw the principal components of patch features: of all patches, and of the foreground alone.

    By default the layer is "last", or the last stage with at least 8 rows and columns of patches.
    """
    from visionattn.viz.components import draw_components

    try:
        backbone = _backbone(subject, options.layer)
        features = patch_features(backbone, subject.images)
        of_all, of_foreground = (fit_colours(features, foreground=only)(features) for only in (False, True))
    except ValueError as error:
        raise NoSheetError(str(error)) from error
    return draw_components(
        subject.pixels,
        of_all.colours,
        of_foreground.colours,
        of_foreground.foreground,
        title=f"{subject.title}: principal components of {_name(*backbone.layers)}",
        height=options.height,
    )


def _backbone(subject: Subject, layer: Layer | None) -> FrozenBackbone:
    loaded = subject.loaded._replace(model=subject.network)
    preprocessing = {**loaded.spec.preprocessing, "input_size": tuple(subject.images.shape[1:])}
    backbone = freeze(loaded, ["last" if layer is None else layer], preprocessing, subject.images.device, "32-true")
    if layer is None and min(backbone.layouts["last"].grid) < MIN_GRID:
        stages = FrozenBackbone(backbone.model, backbone.name, None, preprocessing=preprocessing).layouts
        found = [stage for stage, layout in stages.items() if min(layout.grid) >= MIN_GRID]
        return _backbone(subject, found[-1] if found else "last")
    return backbone


def draw_gradcam(subject: Subject, options: LookOptions) -> "Pixels":
    """Draw the Grad-CAM map of each image for the predicted class, or for one class."""
    from visionattn.viz.heat_maps import draw_heat_maps

    explained = choose_classes(subject, options.class_name)
    layer = default_layer(subject.model) if options.layer is None else options.layer
    pairs = zip(subject.one_by_one("Grad-CAM"), explained.classes.split(1), strict=True)
    try:
        maps = torch.cat([grad_cam(subject.model, image, number, layer) for image, number in pairs])
    except ValueError as error:
        raise NoSheetError(str(error)) from error
    layer = layer if layer == "last" else layer % len(subject.model.feature_info)
    return draw_heat_maps(
        subject.pixels,
        maps[:, None].cpu(),
        ["Grad-CAM"],
        labels=explained.labels,
        title=f"{subject.title}: Grad-CAM of {_name(layer)}",
        height=options.height,
    )


def _name(layer: Layer) -> str:
    return "the last layer" if layer == "last" else f"layer {layer}"


def draw_saliency(subject: Subject, options: LookOptions) -> "Pixels":
    """Draw SmoothGrad and integrated gradients of each image for the predicted class, or for one class."""
    from visionattn.viz.heat_maps import draw_heat_maps

    explained = choose_classes(subject, options.class_name)
    maps = []
    for image, number in zip(subject.one_by_one("saliency"), explained.classes.split(1), strict=True):
        kinds = (method(subject.model, image, number) for method in (smooth_gradients, integrated_gradients))
        maps.append(torch.cat([saliency_map(kind) for kind in kinds]))
    values = gaussian_filter(torch.stack(maps).cpu().numpy(), (0, 0, BLUR, BLUR))
    return draw_heat_maps(
        subject.pixels,
        np.minimum(values, np.percentile(values, BRIGHTEST, axis=(2, 3), keepdims=True)),
        ["SmoothGrad", "integrated gradients"],
        labels=explained.labels,
        title=f"{subject.title}: saliency",
        height=options.height,
    )


class Explained(NamedTuple):
    """Classes whose scores are explained.

    Attributes:
        classes: Number of a class for each image `[P]`.
        labels: Its name and probability, for each image.
    """

    classes: Tensor
    labels: list[str]


def choose_classes(subject: Subject, class_name: str | None = None) -> Explained:
    """Return the predicted class of each image, or one class for all images.

    Raises:
        NoSheetError: The model is no classifier, or its backbone gives no gradients.
        UserError: There is no such class.
    """
    loaded = subject.loaded
    try:
        require_classes(loaded)
    except ValueError as error:
        raise NoSheetError(str(error)) from error
    if isinstance(loaded.model, ProbeClassifier):
        raise NoSheetError(f"{loaded.name} is a head on a frozen backbone, which gives no gradients; fine-tune a model")
    names, _ = name_classes(loaded)
    with torch.inference_mode():
        logits = torch.cat([subject.model(image) for image in subject.images.split(1)]).float()
    shares = logits.sigmoid() if loaded.spec.multi_label else logits.softmax(-1)
    classes = logits.argmax(-1) if class_name is None else torch.full((len(logits),), find_class(class_name, names))
    found = zip(classes.tolist(), shares.tolist(), strict=True)
    return Explained(classes, [f"{names[number].split(',')[0]} {row[number]:.0%}" for number, row in found])


def find_class(wanted: str, names: list[str]) -> int:
    """Return the number of a class, named by its name, by one of its synonyms between commas, or by its number.

    Raises:
        UserError: There is no such class, or several share the name.
    """
    word = wanted.strip().lower()
    found = [number for number, name in enumerate(names) if word == name.lower()]
    found = found or [
        number for number, name in enumerate(names) if word in (part.strip() for part in name.lower().split(","))
    ]
    if not found and word.isdecimal() and int(word) < len(names):
        return int(word)
    if len(found) != 1:
        near = [f"{number} ({name})" for number, name in enumerate(names) if word in name.lower()][:3]
        raise UserError(
            f"--class_name {wanted}: {'several classes have' if found else 'no class has'} this name; give a name or a "
            f"number from 0 to {len(names) - 1}{did_you_mean(near)}"
        )
    return found[0]
