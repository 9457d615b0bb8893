"""The centre loss and the update rule of its centres."""

import pytest
import torch

from visionattn.losses.center import CenterLoss


def test_center_loss_and_gradient_equal_the_equation() -> None:
    loss = CenterLoss(3, 2).eval()
    loss.centers.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]))
    features = torch.tensor([[3.0, 0.0], [0.0, 0.0]], requires_grad=True)
    value = loss(features, torch.tensor([0, 1]))
    assert value.item() == (4 + 4) / 2 / 2
    value.backward()
    assert torch.equal(features.grad, torch.tensor([[2.0, 0.0], [0.0, -2.0]]) / 2)


def test_centres_move_only_in_training() -> None:
    loss = CenterLoss(3, 1, rate=0.5)
    features, target = torch.tensor([[6.0], [3.0], [4.0]]), torch.tensor([0, 0, 2])
    loss.eval()(features, target)
    assert not loss.centers.any()
    loss.train()(features, target)
    # Wen et al., 2016, equation 4: half of the sum over one more than there are.
    torch.testing.assert_close(loss.centers, torch.tensor([[0.5 * 9 / 3], [0.0], [0.5 * 4 / 2]]))


def test_centres_converge_to_means_and_are_saved() -> None:
    loss = CenterLoss(1, 2)
    features = torch.randn(5, 2)
    for _ in range(60):
        loss(features, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(loss.state_dict()["centers"][0], features.mean(0))


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_rate_out_of_its_bounds_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"\(0, 1\], got {rate}"):
        CenterLoss(2, 2, rate)
