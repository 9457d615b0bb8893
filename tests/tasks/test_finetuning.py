"""Settings of a fine-tuning from the number of images and from the model."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from visionattn.tasks.finetuning import plan_average, plan_batch, plan_epochs, plan_layer_decay


@pytest.mark.parametrize(
    ("num_images", "batch", "epochs", "ema"),
    [(3, 8, 50, None), (100, 8, 50, None), (1000, 64, 50, None), (10_000, 64, 13, None), (1_281_167, 64, 5, 0.999)],
)
def test_length_follows_from_the_number_of_images(num_images: int, batch: int, epochs: int, ema: float | None) -> None:
    per_epoch = max(1, num_images // batch)
    assert plan_batch(num_images) == batch
    assert plan_epochs(per_epoch) == epochs
    assert plan_average(epochs * per_epoch) == ema


@pytest.mark.parametrize("name", ["nat_pico", "vit_small_patch16_224", "nat_tiny", "convnext_base"])
def test_first_layer_of_a_deep_model_still_learns(name: str) -> None:
    """Its share of the rate is that of a ViT of 12 blocks, or more."""
    with torch.device("meta"):
        model = timm.create_model(name)
    decay = plan_layer_decay(model)
    slowest = min(group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=decay))
    assert slowest >= 0.75**13
    assert decay == 0.75 or slowest == pytest.approx(0.75**12, rel=0.05)
