"""Exported folders in transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.export.conftest import NARROW_NAT, Save
from tests.export.test_hub import VIT, export
from visionattn.evaluation import load_model

transformers = pytest.importorskip("transformers")

GAUSSIAN = {**VIT, "slot_init": "gaussian"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "nat": ("nat_pico", {"model_kwargs": NARROW_NAT}),
    "halo-rectangle": ("halo_pico", {"preprocessing": {"input_size": (3, 48, 32)}}),
    "terminator": ("terminator_pico", {}),
    "dcal": ("dcal_vit_pico", {"model_kwargs": VIT, "task": "fine_grained"}),
    "slots": ("slot_vit_pico_patch4_32", {"model_kwargs": GAUSSIAN}),
    "resnet": ("resnet_pico", {"preprocessing": {"crop_mode": "squash", "interpolation": "bicubic"}}),
    "timm": ("test_vit", {"preprocessing": {"input_size": (3, 160, 160)}, "multi_label": True}),
}


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, size, np.uint8)) for size in ((40, 31, 3), (200, 300, 3))]


@pytest.mark.parametrize(("model", "options"), KINDS.values(), ids=KINDS)
def test_transformers_gives_the_same_pixels_and_logits(
    model: str, options: dict[str, Any], save: Save, tmp_path: Path, images: list[Image.Image]
) -> None:
    folder = tmp_path / "hub"
    export("--checkpoint", save(model, **options), "--output", folder)
    own = load_model(f"local-dir:{folder}")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(images)["pixel_values"]
    assert torch.equal(pixels, torch.stack([own.transform()(image) for image in images]))
    found = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    # Its weights lie in the file's memory, where other addresses lead to other rounding.
    aligned = {name: value.clone() for name, value in found.state_dict().items()}
    found.timm_model.load_state_dict({name.removeprefix("timm_model."): x for name, x in aligned.items()}, assign=True)
    with torch.no_grad():
        logits = own.model(pixels)
        assert torch.equal(found(pixels).logits, logits)
    several = options.get("multi_label", False)
    probabilities = logits.sigmoid() if several else logits.softmax(-1)
    shown = transformers.pipeline("image-classification", str(folder))(images)
    for row, answers in zip(probabilities.tolist(), shown, strict=True):
        expected = dict(zip(own.spec.class_names, row, strict=True))
        assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, abs=1e-5)


def test_transformers_gives_the_features_of_a_model_without_classes(save: Save, tmp_path: Path) -> None:
    path = save("nat_pico", model_kwargs=NARROW_NAT, num_classes=0, names=["ann", "bob"], task="reid")
    export("--checkpoint", path, "--output", tmp_path / "hub")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()(x)
        found = transformers.AutoModel.from_pretrained(tmp_path / "hub").eval()(x)
    assert torch.equal(found.pooler_output, expected)


def test_model_that_transformers_saved_loads_here(save: Save, tmp_path: Path) -> None:
    export("--checkpoint", save("nat_pico", model_kwargs=NARROW_NAT), "--output", tmp_path / "hub")
    names = ["cat", "dog"]
    found = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "hub",
        num_labels=2,
        id2label=dict(enumerate(names)),
        label_names=names,  # it would save the three of the folder
        ignore_mismatched_sizes=True,
    ).eval()
    found.save_pretrained(tmp_path / "tuned")
    own = load_model(f"local-dir:{tmp_path / 'tuned'}")
    assert own.spec.class_names == names
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(own.model(x), found(x).logits)


def test_repository_loads_in_timm_and_transformers(save: Save, tmp_path: Path) -> None:
    """The hub's cache, as a download leaves it."""
    repository, commit = tmp_path / "models--ann--birds", "0" * 40
    export("--checkpoint", save("nat_pico", model_kwargs=NARROW_NAT), "--output", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = timm.create_model("hf-hub:ann/birds", pretrained=True, cache_dir=tmp_path).eval()
    found = transformers.AutoModelForImageClassification.from_pretrained(
        "ann/birds", cache_dir=tmp_path, local_files_only=True
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(found(x).logits, model(x))
