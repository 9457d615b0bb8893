"""The private names of torch that `tracing` uses: each still says what it is asked for."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from visionattn_kernels import tracing


def test_is_forward_mode_follows_the_dual_level() -> None:
    assert not tracing.is_forward_mode()
    with forward_ad.dual_level():
        assert tracing.is_forward_mode()


def test_is_transformed_follows_torch_func() -> None:
    assert not tracing.is_transformed()
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(tracing.is_transformed())
        return x

    torch.vmap(look)(torch.zeros(2))
    assert seen == [True]


def test_is_exporting_is_true_in_export_alone() -> None:
    assert not tracing.is_exporting()

    class Look(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if tracing.is_exporting() else x - 1

    exported = torch.export.export(Look(), (torch.zeros(2),)).module()
    assert exported(torch.zeros(2)).tolist() == [1, 1]
    assert torch.compile(Look(), backend="eager")(torch.zeros(2)).tolist() == [-1, -1]


def test_outside_modes_makes_ordinary_tensors() -> None:
    make = tracing.outside_modes(lambda: torch.ones(2, device="cpu"))
    with FakeTensorMode(), torch.inference_mode():
        x = make()
    assert type(x) is Tensor
    assert not x.is_inference()
    assert x.tolist() == [1, 1]
