import pytest
import timm
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from visionattn.layers.full_attention import attend, unfuse


@pytest.mark.parametrize("biased", [False, True])
def test_plain_operators_equal_the_fused_one(biased: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    bias = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True) if biased else None
    leaves = [q, k, v, *([] if bias is None else [bias])]
    found, expected = attend(q, k, v, bias, fused=False), F.scaled_dot_product_attention(q, k, v, bias)
    assert_close(found, expected)
    weight = torch.randn_like(found)
    assert_close(torch.autograd.grad(found, leaves, weight), torch.autograd.grad(expected, leaves, weight))


def test_dropout_of_all_weights_leaves_nothing() -> None:
    q = torch.randn(1, 2, 3, 4)
    assert not attend(q, q, q, dropout=1.0, fused=False).any()


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "dcal_vit_nano", "iso_nano_full"])
def test_half_precision_on_cpus_is_unfused_and_accurate(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            fused = model(images)
            unfuse(model, torch.device("cuda"))
            assert any(getattr(module, "fused_attn", False) for module in model.modules())
            unfuse(model, torch.device("cpu"))
            assert not any(getattr(module, "fused_attn", False) for module in model.modules())
            plain = model(images)
    assert (plain - exact).norm() <= 2 * (fused - exact).norm()
