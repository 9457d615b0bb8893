"""Models with quantized weights."""

import copy

import pytest
import timm
import torch

import visionattn  # noqa: F401  registers the models
from visionattn.layers import MapLinear

WEIGHTS, ACTIVATIONS_TOO = "Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("nat_pico", WEIGHTS),
        ("nat_pico", ACTIVATIONS_TOO),
        ("halo_pico", WEIGHTS),
        ("dcal_vit_nano", WEIGHTS),
        ("dcal_vit_nano", ACTIVATIONS_TOO),
        ("vit_nano_patch4_32", WEIGHTS),
    ],
)
def test_int8_weights_of_torchao_change_logits_little(name: str, config: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = timm.create_model(f"{name}.cifar10", pretrained=True).eval()
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, getattr(quantization, config)())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = model(x), quantized(x)
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_compiled_layer_recognises_a_quantized_weight() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    layer, x = MapLinear(32, 16), torch.randn(2, 4, 4, 32)
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
