import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from visionattn.training.devices import suit_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_convolutional_models_are_channels_last_on_cpus_unless_told_otherwise() -> None:
    assert suit_device(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(64, 64)), CPU, False) == torch.contiguous_format
    for device, asked, last in ((CPU, None, True), (CPU, False, False), (GPU, None, False), (GPU, True, True)):
        conv = nn.Conv2d(4, 4, 3)
        found = suit_device(conv, device, False, asked)
        assert found == (torch.channels_last if last else torch.contiguous_format)
        assert conv.weight.is_contiguous(memory_format=found)


@pytest.mark.parametrize("copied", [False, True])
def test_maps_of_one_position_have_right_gradients_in_bfloat16(copied: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(3, (8,))
    exact = copy.deepcopy(model)
    F.cross_entropy(exact(images), labels).backward()
    suit_device(model, CPU, True)
    model = copy.deepcopy(model) if copied else model  # as the average of weights does
    for _ in range(5):
        for exponent in range(10, 22, 2):  # memory that is free, and whose numbers would show
            torch.full((1 << exponent,), torch.nan)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        for (name, found), expected in zip(model.named_parameters(), exact.parameters(), strict=True):
            assert found.grad is not None
            assert expected.grad is not None
            assert found.grad.isfinite().all(), name
            if name.startswith("layer4"):  # of one position; errors of bfloat16 grow on the way to the first layers
                assert (found.grad - expected.grad).norm() <= 0.2 * expected.grad.norm() + 1e-3, name
