"""Models with quantized weights."""

import copy

import pytest
import timm
import torch

import visionattn  # noqa: F401  registers the models


@pytest.mark.parametrize("name", ["nat_pico", "dinat_pico", "halo_pico", "dcal_vit_nano", "vit_nano_patch4_32"])
@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_int8_weights_of_torchao_change_logits_little(name: str, config: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = timm.create_model(f"{name}.cifar10", pretrained=True).eval()
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, getattr(quantization, config)())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = model(x), quantized(x)
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()
