"""Loaders yield bytes, which batches normalise on their device: the numbers are those of timm's own transforms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor

from visionattn.data import ImageClassificationData, image_transform
from visionattn.data.loading import ImageDataset
from visionattn.data.module import ImageData
from visionattn.data.normalisation import Normalisation
from visionattn.data.reid import ReidData
from visionattn.data.sampling import generators_kept, seed_generators
from visionattn.data.scenes import SceneData

STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CROPS = {"scale": (0.08, 1.0), "hflip": 0.5, "color_jitter": 0.4, "interpolation": "bicubic"}


def opened(root: Path, workers: int = 0, **options: Any) -> ImageClassificationData:
    data = ImageClassificationData(root=str(root), img_size=16, batch_size=4, num_workers=workers, seed=0, **options)
    data.setup("fit")
    return data


def expected(data: ImageClassificationData, **options: Any) -> Tensor:
    """Return the first batch of training images as timm's transform makes them, normalised by the loader."""
    transform = create_transform((3, 16, 16), is_training=True, use_prefetcher=False, **STATISTICS, **options)
    loader: Any = data.train_dataloader()
    images = []
    for draw in next(iter(loader.batch_sampler)):
        image, _ = loader.dataset.source.read(draw.image)
        with generators_kept():
            seed_generators(draw.seed)
            images.append(transform(image))
    return torch.stack(images)


def test_batches_equal_timms_normalised_images_bit_for_bit(colour_folder: Path) -> None:
    data = opened(colour_folder, train_interpolation="bicubic")
    batch = next(iter(data.train_dataloader()))
    assert batch.image.dtype == torch.uint8
    images = batch.to("cpu").image
    assert torch.equal(images, expected(data, **CROPS))
    assert images.is_contiguous()
    assert torch.equal(batch.to("cpu").to("cpu").image, images), "floats are normalised already"


def test_erased_images_equal_timms_bit_for_bit(colour_folder: Path) -> None:
    data = opened(colour_folder, train_interpolation="bicubic", re_prob=1.0, re_count=2)
    batch = next(iter(data.train_dataloader()))
    assert batch.image.dtype == torch.float32
    assert torch.equal(batch.to("cpu").image, expected(data, **CROPS, re_prob=1.0, re_mode="pixel", re_count=2))


@pytest.mark.parametrize("option", [{"no_aug": True}, {"re_prob": 0.0}, {"auto_augment": "augmix-m3-w3"}])
def test_other_training_images_are_bytes(colour_folder: Path, option: dict[str, Any]) -> None:
    assert next(iter(opened(colour_folder, **option).train_dataloader())).image.dtype == torch.uint8


def test_public_transform_normalises(colour_folder: Path) -> None:
    data = opened(colour_folder)
    dataset: Any = data.val_dataloader().dataset
    assert isinstance(dataset, ImageDataset)
    image, _ = dataset.source.read(1)
    plain = create_transform((3, 16, 16), interpolation="bicubic", crop_pct=0.875, **STATISTICS)
    assert torch.equal(image_transform(data.preprocessing)(image), plain(image))


@pytest.mark.parametrize("module", [ImageClassificationData, ReidData, SceneData])
def test_every_batch_is_normalised_by_its_data_set(module: type[ImageData]) -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 1.0]
    data = module(mean=mean, std=std, batch_size=8, num_workers=0, seed=0)  # type: ignore[call-arg]
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    values = batch.image.double() / 255
    by_hand = (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(batch.to("cpu").image, by_hand.float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalisation_leaves_its_images_alone(dtype: torch.dtype) -> None:
    images = torch.arange(32).reshape(2, 1, 4, 4).to(dtype)
    before = images.clone()
    Normalisation((0.125,), (0.5,))(images)
    assert torch.equal(images, before)


def test_statistics_made_in_inference_mode_serve_training() -> None:
    normalise = Normalisation((0.125, 0.25), (0.5, 0.75))
    with torch.inference_mode():
        normalise(torch.zeros(1, 2, 4, 4, dtype=torch.uint8))
    weight = torch.ones(2, 1, 1, requires_grad=True)
    (normalise(torch.zeros(1, 2, 4, 4, dtype=torch.uint8)) * weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == pytest.approx([-4.0, -16 / 3])


@pytest.mark.parametrize("workers", [0, 1])
def test_one_thread_normalises_beside_loader_workers(
    colour_folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    normalise = Normalisation.normalise_bytes

    def observed(self: Normalisation, images: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return normalise(self, images)

    monkeypatch.setattr(Normalisation, "normalise_bytes", observed)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for batch in opened(colour_folder, workers=workers).train_dataloader():
            batch.to("cpu")
        assert seen == {1 if workers else 2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
