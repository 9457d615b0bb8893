"""Sheets of features and gradients: default layers, chosen classes, models that have none."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from visionattn import load_model
from visionattn.analysis import feature_sheets
from visionattn.analysis.feature_sheets import choose_classes, draw_gradcam, draw_pca, draw_saliency, find_class
from visionattn.analysis.subject import LookOptions, NoSheetError, prepare_subject
from visionattn.errors import UserError

NAMES = ["tench, Tinca tinca", "crane", "cab, hack, taxi", "crane", "Crane Fly"]


@pytest.fixture(scope="module")
def images():
    values = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in values]


def subject_of(name, images, **options):
    return prepare_subject(load_model(name, **options), images, device="cpu")


@pytest.mark.parametrize(
    ("name", "layer", "title"),
    [
        ("vit_nano_patch4_32.cifar10", None, "the last layer"),
        ("nat_pico.cifar10", None, "layer 1"),  # the last stage with 8 × 8 patches
        ("nat_pico.cifar10", "last", "the last layer"),
        ("resnet_pico.cifar10", -3, "layer 2"),
    ],
)
def test_pca_takes_the_last_layer_with_enough_patches(monkeypatch, images, name, layer, title):
    titles = []
    monkeypatch.setattr("visionattn.viz.strips.title_bar", lambda sheet, text: titles.append(text) or sheet)
    sheet = draw_pca(subject_of(name, images), LookOptions(layer=layer, height=48))
    assert sheet.dtype == np.uint8
    assert titles == [f"{name}: principal components of {title}"]


@pytest.mark.parametrize("name", ["vit_nano_patch4_32.cifar10", "nat_pico.cifar10", "terminator_pico.cifar10"])
def test_gradcam_explains_the_predicted_class_or_the_chosen_one(monkeypatch, images, name):
    subject, asked = subject_of(name, images), []
    known = feature_sheets.grad_cam

    def record(model, image, classes, layer):
        asked.append(classes.item())
        return known(model, image, classes, layer)

    monkeypatch.setattr(feature_sheets, "grad_cam", record)
    predicted = draw_gradcam(subject, LookOptions(height=48))
    with torch.no_grad():
        assert asked == subject.model(subject.images).argmax(1).tolist()
    chosen = draw_gradcam(subject, LookOptions(height=48, class_name="Ship"))
    assert asked[3:] == [8, 8, 8]
    assert not np.array_equal(predicted, chosen)


def test_labels_are_names_and_probabilities(images):
    subject = subject_of("nat_pico.cifar10", images)
    with torch.no_grad():
        shares = subject.model(subject.images).softmax(1)[:, 3].tolist()
    assert choose_classes(subject, "cat").labels == [f"cat {share:.0%}" for share in shares]


def test_saliency_changes_no_parameter_and_no_image(images):
    subject = subject_of("resnet_pico.cifar10", images[:1])
    before, pixels = subject.images.clone(), subject.pixels.copy()
    draw_saliency(subject, LookOptions(height=48))
    assert torch.equal(subject.images, before)
    np.testing.assert_array_equal(subject.pixels, pixels)
    assert all(parameter.grad is None for parameter in subject.model.parameters())


@pytest.mark.parametrize(
    ("wanted", "number"), [("tench", 0), (" TINCA TINCA ", 0), ("taxi", 2), ("crane fly", 4), ("3", 3), ("1", 1)]
)
def test_class_is_found_by_name_synonym_or_number(wanted, number):
    assert find_class(wanted, NAMES) == number


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("crane", r"several classes have this name; give a name or a number from 0 to 4; did you mean 1 \(crane\), 3"),
        ("ten", r"no class has this name; .*did you mean 0 \(tench, Tinca tinca\)\?"),
        ("5", "--class_name 5: no class has this name; give a name or a number from 0 to 4$"),
    ],
)
def test_class_that_is_none_or_several_is_named(wanted, message):
    with pytest.raises(UserError, match=message):
        find_class(wanted, NAMES)


def test_model_without_classes_has_no_sheet_of_gradients(images):
    subject = subject_of("nat_pico", images, model_kwargs={"num_classes": 0})
    draw_pca(subject, LookOptions(height=48))
    for draw in (draw_gradcam, draw_saliency):
        with pytest.raises(NoSheetError, match="holds no classifier"):
            draw(subject, LookOptions())


def test_layer_that_is_missing_is_named(images):
    subject = subject_of("nat_pico.cifar10", images)
    with pytest.raises(NoSheetError, match=r"no layer 7; there are 0 to 2, and 'last'"):
        draw_pca(subject, LookOptions(layer=7))
    with pytest.raises(NoSheetError, match=r"no layer 7; there are 0 to 2, and 'last'"):
        draw_gradcam(subject, LookOptions(layer=7))


def test_model_that_hides_its_blocks_has_no_gradcam(images):
    subject = subject_of("dcal_vit_nano.cifar10", images)
    with pytest.raises(NoSheetError, match="does not compute its layers one by one"):
        draw_gradcam(subject, LookOptions())


def test_hiera_has_gradcam_of_its_last_layer_alone():
    from visionattn.analysis.saliency import grad_cam

    model = timm.create_model("hiera_tiny_224", img_size=(64, 64), num_classes=2).eval()
    torch.nn.init.normal_(model.head.fc.weight)
    assert grad_cam(model, torch.randn(1, 3, 64, 64), [0]).shape == (1, 2, 2)
    with pytest.raises(ValueError, match="take 'last'"):
        grad_cam(model, torch.randn(1, 3, 64, 64), [0], 1)
