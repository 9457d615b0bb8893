"""Search for the learning rate: the rate that it chooses, and those that parts of the model are trained at."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

from visionattn.data import ImageClassificationData
from visionattn.errors import UserError
from visionattn.tasks import ClassificationTask
from visionattn.training.rate_finder import HIGHEST, LOWEST, RateSearch, search_rate

RATES = np.geomspace(1e-6, 1, 101).tolist()


@pytest.mark.parametrize("steepest", [1e-4, 1e-2])
def test_best_rate_is_where_the_loss_falls_fastest(steepest: float) -> None:
    """A sigmoid over the logarithm of the rate falls fastest in its middle; the end of a search may be infinite."""
    losses = 1 / (1 + (torch.tensor(RATES) / steepest) ** 2)
    noise = 0.02 * torch.randn(101, generator=torch.Generator().manual_seed(0))
    ends = torch.where(torch.arange(101) < 95, losses + noise, torch.inf)
    for found in (losses, losses + noise, ends):
        rate = RateSearch(RATES, found).best_rate()
        assert abs(np.log10(rate / steepest)) < 0.35
        assert float(f"{rate:.2g}") == rate, "two digits"


@pytest.mark.parametrize(
    "losses",
    [torch.ones(101), torch.linspace(1, 2, 101), torch.full((101,), torch.nan), torch.rand(20)],
    ids=["constant", "rising", "not finite", "short"],
)
def test_search_without_a_falling_loss_is_an_error(losses: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"--find_lr: the loss falls at none of .*pass --model.lr"):
        RateSearch(RATES[: len(losses)], losses).best_rate()


def test_figure_is_drawn(tmp_path: Path) -> None:
    RateSearch(RATES, torch.linspace(2, 1, 101)).save(tmp_path / "rates.png")
    assert Image.open(tmp_path / "rates.png").width > 300


def test_parts_of_the_model_keep_their_factors_and_random_states_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.training.rate_finder.UPDATES", 30)
    task = ClassificationTask("test_vit", layer_decay=0.5, bias_lr_factor=2, model_kwargs={"img_size": 16})
    data = ImageClassificationData("digits", img_size=16, batch_size=2, num_workers=0, cache=0.1)
    used: list[list[tuple[float, float]]] = []

    def keep(optimizer: Any, *_: Any) -> None:
        used.append([(group["lr"], group["lr_scale"]) for group in optimizer.param_groups])

    before = torch.get_rng_state()
    hook = register_optimizer_step_post_hook(keep)
    try:
        search = search_rate(task, data, {"accelerator": "cpu", "accumulate_grad_batches": 2, "limit_train_batches": 7})
    finally:
        hook.remove()
    assert torch.equal(torch.get_rng_state(), before)
    assert data.image_cache is None, "it would take memory beside the training's"
    assert len(search.rates) == len(search.losses) == len(used) <= 30
    assert len({factor for _, factor in used[0]}) > 3
    for rate, groups in zip(search.rates, used, strict=True):
        np.testing.assert_allclose([lr for lr, _ in groups], [rate * factor for _, factor in groups])
    assert search.rates[0] == LOWEST
    assert search.rates[-1] <= HIGHEST
