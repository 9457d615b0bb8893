"""Early stopping and several best checkpoints, in trainings whose scores are given."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from visionattn.training.checkpoints.callbacks import BestCheckpoint, LastCheckpoint
from visionattn.training.stopping import EarlyStop

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's hints


class Scored(BoringModel):
    """A model whose validations have these scores, in order."""

    def __init__(self, scores: Sequence[float], metric: str) -> None:
        super().__init__()
        self.scores, self.monitor = scores, metric

    def describe_score(self, value: float) -> str:
        return f"{self.monitor} {value:.2%}"

    def on_validation_epoch_end(self) -> None:
        self.log(self.monitor, self.scores[self.trainer.global_step - 1])


def train(
    folder: Path, scores: Sequence[float], *callbacks: Any, metric: str = "val_top1", resume: bool = False
) -> int:
    """Train one update per epoch, and return the number of epochs."""
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, LastCheckpoint(folder)],
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_train_batches=1,
        limit_val_batches=1,
        logger=False,
        max_epochs=len(scores),
        num_sanity_val_steps=0,
    )
    trainer.fit(Scored(scores, metric), ckpt_path=folder / "last.ckpt" if resume else None)
    return trainer.current_epoch


# Early stopping


@pytest.mark.parametrize(
    ("patience", "min_delta", "epochs"),
    [(1, 0, 2), (2, 0, 6), (4, 0, 8), (2, 0.15, 5)],
    ids=["1", "2", "4", "small changes do not count"],
)
def test_training_stops_after_validations_without_a_better_score(
    tmp_path: Path, patience: int, min_delta: float, epochs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [0.3, 0.2, 0.5, 0.6, 0.6, 0.5, 0.4, 0.9]
    assert train(tmp_path, scores, EarlyStop("max", patience, min_delta)) == epochs
    best = max(scores[:epochs]) if not min_delta else 0.5
    line = f"stopped early: val val_top1 {best:.2%} has not improved in {patience} validation"
    assert (line in capsys.readouterr().out) == (epochs < len(scores))


def test_training_by_a_loss_stops_when_it_no_longer_falls(tmp_path: Path) -> None:
    scores = [0.5, 0.4, 0.45, 0.41, 0.3]
    assert train(tmp_path, scores, EarlyStop("min", 2), metric="val_loss") == 4


def test_score_that_is_not_a_number_is_no_improvement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    assert train(tmp_path, [0.5, nan, 0.6, nan, nan, 0.7], EarlyStop("max", 2)) == 5
    assert "stopped early: val val_top1 60.00% has not improved in 2 validations" in capsys.readouterr().out


def test_resumed_training_counts_on_with_the_patience_of_its_options(tmp_path: Path) -> None:
    scores = [0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1]
    assert train(tmp_path, scores[:2], EarlyStop("max", 2)) == 2
    assert train(tmp_path, scores, EarlyStop("max", 2), resume=True) == 3
    assert train(tmp_path, scores, EarlyStop("max", 4), resume=True) == 5


# Best checkpoints


def held(folder: Path) -> dict[str, int]:
    """Return the epoch, from 1, of the weights in each checkpoint."""
    return {
        path.name: torch.load(path, weights_only=True)["global_step"]
        for path in sorted(folder.glob("*.ckpt"))
        if path.name != "last.ckpt"
    }


SCORES = [0.1, 0.5, 0.3, 0.5, 0.4, 0.6, 0.2]
AFTER_3 = {"best.ckpt": 2, "step2-val_top1-0.5000.ckpt": 2, "step3-val_top1-0.3000.ckpt": 3}
AFTER_7 = {"best.ckpt": 6, "step4-val_top1-0.5000.ckpt": 4, "step6-val_top1-0.6000.ckpt": 6}


def test_several_best_checkpoints_are_kept_over_a_resume(tmp_path: Path) -> None:
    train(tmp_path / "whole", SCORES, BestCheckpoint(tmp_path / "whole", top_k=2))
    assert held(tmp_path / "whole") == AFTER_7
    train(tmp_path / "a", SCORES[:3], BestCheckpoint(tmp_path / "a", top_k=2))
    assert held(tmp_path / "a") == AFTER_3
    moved = (tmp_path / "a").rename(tmp_path / "b")
    train(moved, SCORES, BestCheckpoint(moved, top_k=2), resume=True)
    assert held(moved) == AFTER_7


def test_number_of_checkpoints_may_change_in_a_resume(tmp_path: Path) -> None:
    train(tmp_path, SCORES[:3], BestCheckpoint(tmp_path))
    assert held(tmp_path) == {"best.ckpt": 2}
    train(tmp_path, SCORES[:5], BestCheckpoint(tmp_path, top_k=3), resume=True)
    three = {"earlier-val_top1-0.5000.ckpt": 2, "step4-val_top1-0.5000.ckpt": 4, "step5-val_top1-0.4000.ckpt": 5}
    assert held(tmp_path) == {"best.ckpt": 2, **three}
    train(tmp_path, SCORES, BestCheckpoint(tmp_path), resume=True)
    assert held(tmp_path) == {"best.ckpt": 6, **three}


def test_checkpoint_that_was_removed_is_not_missed(tmp_path: Path) -> None:
    """As after a kill between the removal of an old checkpoint and the next last.ckpt, which still names it."""
    train(tmp_path, SCORES[:3], BestCheckpoint(tmp_path, top_k=2))
    (tmp_path / "step3-val_top1-0.3000.ckpt").unlink()
    train(tmp_path, SCORES[:5], BestCheckpoint(tmp_path, top_k=2), resume=True)
    assert held(tmp_path) == {"best.ckpt": 2, "step2-val_top1-0.5000.ckpt": 2, "step4-val_top1-0.5000.ckpt": 4}


def test_file_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    train(tmp_path, SCORES, BestCheckpoint(tmp_path, top_k=2))
    assert held(tmp_path) == AFTER_7
    assert (tmp_path / "best.ckpt").stat().st_nlink == 1
