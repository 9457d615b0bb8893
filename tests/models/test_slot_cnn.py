"""The encoder of Slot Attention; timm's contract is tested with that of all models."""

from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

import visionattn  # noqa: F401  registers the models


def test_published_encoder_keeps_the_resolution() -> None:
    model: Any = timm.create_model("slot_cnn", num_classes=0)
    x = torch.randn(1, 3, 9, 12)
    expected = x
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            assert parameter.shape[2:] == (5, 5)
            expected = F.relu(F.conv2d(expected, parameter, model.get_parameter(name[:-6] + "bias"), padding=2))
    assert expected.shape == (1, 64, 9, 12)
    torch.testing.assert_close(model.forward_features(x), expected)
    assert sum(p.numel() for p in model.parameters()) == 64 * (3 * 25 + 1) + 3 * 64 * (64 * 25 + 1)


def test_layers_kernels_and_strides_go_together() -> None:
    model = timm.create_model("slot_cnn_pico", embed_dims=(4, 6), kernel_sizes=(3, 1), strides=(2, 1), num_classes=0)
    assert model.forward_features(torch.randn(1, 3, 8, 8)).shape == (1, 6, 4, 4)
    with pytest.raises(ValueError, match=r"one entry per layer, of two or more; got \[4\], \[5, 3, 3, 3\]"):
        timm.create_model("slot_cnn_pico", embed_dims=(4,))
