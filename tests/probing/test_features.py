"""Sources of features: what heads see is what the backbone gives, from disk, from memory or at each step."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

import visionattn.models  # noqa: F401  registers nat_pico
from visionattn.data.digits import Digits
from visionattn.data.loading import ImageDataset, ImageLoader
from visionattn.data.sampling import Draw
from visionattn.data.sources import Source
from visionattn.data.transforms import image_transform
from visionattn.probing.features.contents import fingerprint
from visionattn.probing.features.extraction import (
    FeatureCache,
    ImageBatch,
    collate_images,
    extract_features,
    pool_tokens,
    view_seed,
)
from visionattn.probing.features.sources import CachedFeatures, FeatureSource, OnlineFeatures, TensorFeatures
from visionattn.probing.frozen import FrozenBackbone, Layer

CROP = {"scale": (0.3, 1.0), "hflip": 0.5, "color_jitter": 0.4}
COUNT = 21


class Digit(Digits):
    """The first digits, of which some may be broken files."""

    def __init__(self, broken: Sequence[int] = ()) -> None:
        super().__init__("train", "RGB")
        self.broken = broken

    def __len__(self) -> int:
        return COUNT

    def read(self, index: int) -> tuple[Any, int]:
        if index in self.broken:
            raise OSError("truncated")
        return super().read(index)


class DigitImages:
    """Images as a command hands them over: a source, transforms, a loader."""

    def __init__(
        self, backbone: FrozenBackbone, source: Source | None = None, seed: int = 0, num_workers: int = 0
    ) -> None:
        self.source, self.seed, self.num_workers = source or Digit(), seed, num_workers
        self.identity = {"name": "digits", "fingerprint": fingerprint(map(str, range(len(self.source))))}
        self.targets = self.source.targets()
        self.augmentation = {**CROP, "seed": seed}
        self.transforms = [image_transform(backbone.preprocessing, options) for options in (None, CROP)]

    def __len__(self) -> int:
        return len(self.source)

    def open(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterable[ImageBatch]:
        draws = [
            [Draw(number, view_seed(self.seed, view, number) if view else None) for number in batch]
            for batch in batches
        ]
        return ImageLoader(  # type: ignore[return-value]
            ImageDataset(self.source, self.transforms[min(view, 1)]),
            "skip",
            batch_sampler=draws,
            collate_fn=collate_images,
            num_workers=self.num_workers,
        )


def build(layers: Sequence[Layer] = ("last",), **kwargs: Any) -> FrozenBackbone:
    torch.manual_seed(0)
    kwargs = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 16, "num_heads": 2, "reg_tokens": 2} | kwargs
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **kwargs)
    preprocessing = {
        "input_size": (3, 32, 32),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    return FrozenBackbone(model, "vit_tiny_patch16_224", layers, kwargs, preprocessing)


def extract(backbone: FrozenBackbone, folder: Path, images: DigitImages | None = None, **options: Any) -> FeatureCache:
    options = {"token_budget_gb": 1, "dtype": "float32", "batch_size": 4, "rows_per_shard": 8} | options
    return extract_features(backbone, images or DigitImages(backbone), folder, **options)


def by_hand(backbone: FrozenBackbone, layer: Layer = "last", view: int = 0, broken: Sequence[int] = ()) -> Tensor:
    """Tokens of all images, one after another."""
    images = DigitImages(backbone)
    numbers = [number for number in range(COUNT) if number not in broken]
    batches = images.open([[number] for number in numbers], view)
    return torch.cat([backbone(batch.image)[layer] for batch in batches])


def gather(source: FeatureSource, indices: Tensor, batch_size: int = 5, epoch: int = 0) -> Tensor:
    """All batches of a source, whose places must be those of the indices, in their order."""
    tokens, places = zip(*source.batches(indices, batch_size, epoch), strict=True)
    assert torch.equal(torch.cat(places), torch.arange(len(indices)))
    assert [len(part) for part in tokens[:-1]] == [batch_size] * (len(tokens) - 1)
    assert all(part.dtype == torch.float32 for part in tokens)
    return torch.cat(tokens)


SHUFFLED = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))[:13]


def test_cached_tokens_equal_backbone_tokens(tmp_path: Path) -> None:
    backbone = build()
    source = CachedFeatures(extract(backbone, tmp_path))
    assert (source.dim, source.num_prefix_tokens, source.num_reg_tokens, source.grid) == (16, 3, 2, (4, 4))
    assert len(source) == COUNT
    torch.testing.assert_close(gather(source, SHUFFLED), by_hand(backbone)[SHUFFLED])
    twice = torch.tensor([7, 20, 7, 0])
    torch.testing.assert_close(gather(source, twice, 3), by_hand(backbone)[twice])
    assert torch.equal(source.targets, torch.tensor(Digit().targets()[:COUNT]))
    assert source.targets.dtype == torch.int64


def test_features_are_kept_in_half_precision_by_default(tmp_path: Path) -> None:
    backbone = build()
    cache = extract_features(backbone, DigitImages(backbone), tmp_path, token_budget_gb=1)
    stored = np.load(tmp_path / "view0" / "00000.last.tokens.npy", mmap_mode="r")
    assert (stored.dtype, stored.shape) == (np.float16, (COUNT, 19, 16))
    source, tokens = CachedFeatures(cache), by_hand(backbone)
    torch.testing.assert_close(gather(source, SHUFFLED), tokens[SHUFFLED], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(source.pooled("gap"), tokens[:, 3:].mean(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("budget", [0, 1])
def test_vectors_are_class_tokens_and_mean_patches_without_registers(budget: float, tmp_path: Path) -> None:
    backbone = build()
    cache = extract(backbone, tmp_path, token_budget_gb=budget)
    source, tokens = OnlineFeatures(cache, backbone, DigitImages(backbone)), by_hand(backbone)
    assert cache.views == budget
    torch.testing.assert_close(source.pooled("cls"), tokens[:, 0])
    torch.testing.assert_close(source.pooled("gap"), tokens[:, 3:].mean(1))


def test_online_features_are_the_cached_ones(tmp_path: Path) -> None:
    backbone = build([1, "last"])
    cache = extract(backbone, tmp_path, token_budget_gb=0)
    for layers in (["last"], ["last", 1]):
        online = OnlineFeatures(cache, backbone, DigitImages(backbone), layers)
        expected = torch.cat([by_hand(backbone, layer) for layer in layers], dim=2)
        assert online.dim == 16 * len(layers)
        torch.testing.assert_close(gather(online, SHUFFLED), expected[SHUFFLED])
        # Without augmentation every epoch is the first.
        torch.testing.assert_close(gather(online, SHUFFLED, epoch=4), expected[SHUFFLED])


def test_views_differ_and_are_reproducible(tmp_path: Path) -> None:
    backbone = build()
    cache = extract(backbone, tmp_path / "a", views=3)
    cached = CachedFeatures(cache)
    online = OnlineFeatures(cache, backbone, DigitImages(backbone), augment=True)
    views = [gather(cached, SHUFFLED, epoch=epoch) for epoch in range(3)]
    for view, tokens in enumerate(views):
        torch.testing.assert_close(tokens, by_hand(backbone, view=view)[SHUFFLED])
        # Whatever the order, the batch, or the number of workers.
        torch.testing.assert_close(gather(online, SHUFFLED, 4, epoch=view), tokens)
        assert torch.equal(gather(cached, SHUFFLED, epoch=view + 3), tokens)
    assert all(not torch.allclose(views[i], views[j], atol=0.01) for i, j in ((0, 1), (0, 2), (1, 2)))
    # Vectors are of images as they are evaluated.
    torch.testing.assert_close(cached.pooled("cls"), by_hand(backbone)[:, 0])

    again = extract(backbone, tmp_path / "b", DigitImages(backbone, num_workers=2), views=2)
    assert torch.equal(gather(CachedFeatures(again), SHUFFLED, epoch=1), views[1])
    other = extract(backbone, tmp_path / "c", DigitImages(backbone, seed=1), views=2)
    assert not torch.allclose(gather(CachedFeatures(other), SHUFFLED, epoch=1), views[1], atol=0.01)


def test_layers_are_put_side_by_side(tmp_path: Path) -> None:
    backbone = build([0, 2])
    source = CachedFeatures(extract(backbone, tmp_path), [2, 0])
    tokens = torch.cat([by_hand(backbone, 2), by_hand(backbone, 0)], dim=2)
    assert source.dim == 32
    torch.testing.assert_close(gather(source, SHUFFLED), tokens[SHUFFLED])
    torch.testing.assert_close(source.pooled("gap"), tokens[:, 3:].mean(1))
    torch.testing.assert_close(source.pooled("cls"), tokens[:, 0])


def test_stages_of_different_grids_have_vectors_side_by_side_but_no_tokens(tmp_path: Path) -> None:
    backbone = FrozenBackbone(timm.create_model("nat_pico", num_classes=0), "nat_pico", [0, "last"])
    cache = extract(backbone, tmp_path, token_budget_gb=0)
    source = OnlineFeatures(cache, backbone, DigitImages(backbone), [0, "last"])
    assert source.pooled("gap").shape == (COUNT, 48 + 192)
    with pytest.raises(
        ValueError, match=r"layers \[0, 'last'\].*4 × 4 patches after 0; 16 × 16.*take layers of one stage"
    ):
        next(source.batches(SHUFFLED, 4))
    with pytest.raises(ValueError, match=r"layer 0 has no class token.*take 'gap'"):
        source.pooled("cls")


def test_unreadable_images_have_no_row(tmp_path: Path) -> None:
    backbone, broken = build(), [0, 1, 2, 3, 4, 5, 6, 7, 10]  # the first shard is empty
    images = DigitImages(backbone, Digit(broken))
    cache = extract(backbone, tmp_path, images, views=2)
    left = [number for number in range(COUNT) if number not in broken]
    assert cache.indices.tolist() == left
    expected, indices = by_hand(backbone, broken=broken), torch.tensor([11, 0, 2, 5])
    for source in (CachedFeatures(cache), OnlineFeatures(cache, backbone, images)):
        assert len(source) == len(left)
        assert source.targets.tolist() == [Digit().targets()[number] for number in left]
        torch.testing.assert_close(gather(source, indices, 3), expected[indices])
        torch.testing.assert_close(source.pooled("cls"), expected[:, 0])


def test_image_that_breaks_after_extraction_is_an_error(tmp_path: Path) -> None:
    backbone = build()
    cache = extract(backbone, tmp_path)
    online = OnlineFeatures(cache, backbone, DigitImages(backbone, Digit([5])))
    with pytest.raises(ValueError, match=rf"not those of the cache in {tmp_path} any more: .*truncated"):
        gather(online, torch.arange(COUNT))


def test_features_that_half_precision_does_not_hold_are_refused(tmp_path: Path) -> None:
    backbone = build()
    backbone.model.norm.weight.data.fill_(1e6)
    with pytest.raises(
        ValueError, match=r"features last\.cls go up to \S+e\+06, which float16 does not hold; take float32"
    ):
        extract(backbone, tmp_path, dtype="float16")
    with pytest.warns(UserWarning, match="other dtype"):
        extract(backbone, tmp_path)
    backbone.model.norm.weight.data.fill_(float("nan"))
    with pytest.warns(UserWarning, match="other weights"), pytest.raises(ValueError, match="go up to nan"):
        extract(backbone, tmp_path)


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    backbone = build()
    cache = extract(backbone, tmp_path, token_budget_gb=0)
    with pytest.raises(ValueError, match=rf"cache in {tmp_path} has no tokens; raise token_budget_gb"):
        CachedFeatures(cache)
    with pytest.raises(ValueError, match=r"layers \[7\] must be one or more of those extracted: \['last'\]"):
        OnlineFeatures(cache, backbone, DigitImages(backbone), [7])
    with pytest.raises(ValueError, match="views and batch_size must be at least 1; got 0 and 4"):
        extract(backbone, tmp_path, views=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        next(OnlineFeatures(cache, backbone, DigitImages(backbone)).batches(SHUFFLED, 0))
    with pytest.raises(ValueError, match=r"tokens must be \[n, N, dim\] and targets \[n\]; got \[4, 3\] and \[4\]"):
        TensorFeatures(torch.zeros(4, 3), torch.zeros(4))


def test_features_in_memory() -> None:
    tokens, targets = torch.randn(9, 7, 4), torch.arange(9) % 3
    source = TensorFeatures(tokens.double(), targets, num_prefix_tokens=2, num_reg_tokens=1)
    indices = torch.tensor([8, 3, 3, 0])
    assert torch.equal(gather(source, indices, 3, epoch=5), tokens[indices])
    assert torch.equal(source.pooled("cls"), tokens[:, 0])
    torch.testing.assert_close(source.pooled("gap"), tokens[:, 2:].mean(1))
    assert (len(source), source.dim) == (9, 4)
    with pytest.raises(ValueError, match="want a class token"):
        pool_tokens(tokens, "cls", num_prefix_tokens=1, num_reg_tokens=1)


def test_seeds_of_views_differ_by_seed_view_and_image() -> None:
    seeds = {view_seed(seed, view, image) for seed in range(4) for view in range(4) for image in range(16)}
    assert len(seeds) == 256
    assert all(0 <= seed < 2**32 for seed in seeds)
