"""Mistakes with --task recall: one line that names the option and the remedy."""

from collections.abc import Callable
from pathlib import Path

import pytest

Fails = Callable[..., str]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            ["--data.pairs=25"], "--data.pairs 25: 8×8 cells have room for 24 pairs in random places: pass", id="pairs"
        ),
        pytest.param(
            ["--data.name=mqar", "--data.pairs=20"], "--data.length 64: 20 pairs need at least 80 words", id="length"
        ),
        pytest.param(
            ["--model.mixer=[full, core]", "--model.is_causal"],
            "--model.mixer core sees later words of a sequence: choose from neighborhood, full",
            id="causal",
        ),
        pytest.param(["--model.mixer=halo"], "mixer must be one of neighborhood, full", id="mixer"),
        pytest.param(["--model.model_kwargs={patch_size: 2}"], "iso_nano has 4×4 tokens for 8×8 cells", id="tokens"),
    ],
)
def test_recall_with_options_that_do_not_fit_is_an_error(fails: Fails, options: list[str], says: str) -> None:
    quick = ("--trainer.accelerator=cpu", "--data.val_length=4", "--data.train_length=64", "--model.embed_dim=8")
    fails("fit", "--task=recall", *quick, *options, says=says)
    assert not list(Path("runs").glob("*/*/checkpoints/*"))
