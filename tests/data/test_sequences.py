"""Images as sequences of pixels: what comes where, and that a run and its checkpoint agree on it."""

from pathlib import Path

import pytest
import torch

from visionattn.data import DataError, ImageClassificationData
from visionattn.data.sequences import permutation


def loaded(root: Path, split: str = "validation", **options: object) -> torch.Tensor:
    defaults: dict[str, object] = {"in_chans": 1, "batch_size": 10, "num_workers": 0, "no_aug": True, "crop_pct": 1.0}
    data = ImageClassificationData("mnist", str(root), **{**defaults, **options})  # type: ignore[arg-type]
    data.setup("fit")
    loader = data.val_dataloader() if split == "validation" else data.train_dataloader()
    return torch.cat([batch.image for batch in loader])


def test_pixels_come_row_by_row(mnist_root: Path) -> None:
    images, sequences = loaded(mnist_root), loaded(mnist_root, sequence="pixels")
    assert sequences.shape == (20, 1, 1, 784)
    assert torch.equal(sequences[:, :, 0, 28:56], images[:, :, 1])


def test_colours_stay_channels(mnist_root: Path) -> None:
    assert loaded(mnist_root, sequence="pixels", in_chans=3).shape == (20, 3, 1, 784)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_permutation_is_the_same_for_all_images(mnist_root: Path, split: str) -> None:
    plain = loaded(mnist_root, split, sequence="pixels", seed=0)
    for seed in (92, 93):
        permuted = loaded(mnist_root, split, sequence="permuted", permutation_seed=seed, seed=0)
        assert torch.equal(permuted, plain[..., permutation(784, seed)])


def test_permutation_never_changes() -> None:
    # Published by its seed alone. These are NumPy's legacy generator's, of any version.
    order = permutation(784, 92)
    assert order[:6].tolist() == [553, 649, 113, 140, 92, 87]
    assert sorted(order.tolist()) == list(range(784))


def test_augmentation_comes_before_the_order(mnist_root: Path) -> None:
    options: dict[str, object] = {"no_aug": False, "crop_padding": 2, "seed": 0, "hflip": 0.0, "color_jitter": 0.0}
    images = loaded(mnist_root, "train", **options)
    sequences = loaded(mnist_root, "train", sequence="permuted", permutation_seed=5, **options)
    assert torch.equal(sequences, images.flatten(2)[..., permutation(784, 5)].unsqueeze(2))


def test_description_says_sequences(mnist_root: Path) -> None:
    data = ImageClassificationData("mnist", str(mnist_root), in_chans=1, sequence="permuted", permutation_seed=92)
    data.setup("fit")
    assert data.describe().endswith("of 10 classes, as sequences of 784 pixels")
    assert data.item_shape == (1, 1, 784)
    assert data.preprocessing["input_size"] == (1, 28, 28)
    assert (data.preprocessing["sequence"], data.preprocessing["permutation_seed"]) == ("permuted", 92)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence": "permuted"}, "needs --data.permutation_seed N"),
        ({"sequence": "pixels", "permutation_seed": 1}, "is for --data.sequence permuted, not for pixels"),
        ({"permutation_seed": 1}, "is for --data.sequence permuted, not for images"),
        ({"sequence": "permuted", "permutation_seed": -1}, r"must lie in \[0, 2\^32\), got -1"),
        ({"sequence": "hilbert"}, "must be one of pixels, permuted, got 'hilbert'"),
    ],
    ids=str,
)
def test_contradictions_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageClassificationData(**options)  # type: ignore[arg-type]
