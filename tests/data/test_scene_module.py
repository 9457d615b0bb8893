"""The DataModule of scenes: what is in a batch, in which order, on which rank, and what is told."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.data import DataError, UnreadableImageError
from visionattn.data.scenes import Scene, SceneBatch, SceneData, open_scenes


def opened(stage: str = "fit", rank: int = 0, world_size: int = 1, **options: Any) -> SceneData:
    data = SceneData(**{"batch_size": 4, "num_workers": 0, "seed": 0, "limit": 10, **options})
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    data.setup(stage)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images, of 1 to 6 objects, in each split."""
    for split in ("train", "val"):
        for kind in ("images", "instances"):
            (tmp_path / split / kind).mkdir(parents=True)
        for index in range(6):
            numbers = np.arange(24 * 16).reshape(16, 24) % (index + 2)
            Image.fromarray(numbers.astype(np.uint8)).save(tmp_path / split / "instances" / f"{index}.png")
            Image.new("RGB", (24, 16), (40 * index, 9, 9)).save(tmp_path / split / "images" / f"{index}.jpg")
    return tmp_path


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def check(batch: SceneBatch, scenes: list[Scene]) -> None:
    """Whether a batch is of these scenes, which have its size."""
    assert len(batch.image) == len(batch.segments) == len(batch.classes) == len(batch.things) == len(scenes)
    for number, scene in enumerate(scenes):
        count = len(scene.classes)
        assert batch.segments[number].tolist() == scene.segments.tolist()
        assert batch.classes[number, :count].tolist() == scene.classes.tolist()
        assert batch.things[number, :count].tolist() == scene.things.tolist()
        assert (batch.classes[number, count:] == -1).all()
        assert not batch.things[number, count:].any()
    assert batch.classes.shape[1] == batch.things.shape[1] == max(len(scene.classes) for scene in scenes)


def test_synthetic_scenes_need_nothing() -> None:
    data = opened("validate")
    scenes = open_scenes("synthetic", split="validation")
    batches = list(data.val_dataloader())
    assert [len(batch.image) for batch in batches] == [4, 4, 2]
    for number, batch in enumerate(batches):
        assert batch.image.shape[1:] == (3, 64, 64) == data.item_shape
        assert (batch.image.dtype, batch.segments.dtype) == (torch.uint8, torch.int64)
        assert batch.to("cpu").image.dtype == torch.float32
        assert (batch.classes.dtype, batch.things.dtype, batch.errors) == (torch.int64, torch.bool, [])
        places = range(4 * number, 4 * number + len(batch.image))
        assert batch.name == [scenes.name(place) for place in places]
        check(batch, [scenes[place] for place in places])
    assert [batch.name for batch in data.test_dataloader()] == [batch.name for batch in batches]
    assert data.class_names == list(scenes.class_names)
    assert data.num_classes == 8
    assert data.describe() == "synthetic: 10 validation scenes of 8 classes"


def test_training_is_shuffled_and_flipped() -> None:
    data = opened(hflip=1.0)
    scenes = open_scenes("synthetic", split="train")
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        batches = list(loader)
        assert [len(batch.image) for batch in batches] == [4, 4]  # the odd rest is dropped
        epochs.append([name for batch in batches for name in batch.name])
        places = [int(name.rsplit("/")[-1]) for name in batches[0].name]
        check(batches[0]._replace(segments=batches[0].segments.flip(-1)), [scenes[place] for place in places])
    assert epochs[0] != epochs[1]
    assert data.describe() == "synthetic: 10 train, 10 validation scenes of 8 classes"


def test_resumed_epoch_continues_at_the_next_scene() -> None:
    whole = [batch.name for batch in opened().train_dataloader()]
    data = opened()
    data.load_state_dict({"epoch": 0, "batches": 1, "batch_size": 4})
    assert [batch.name for batch in data.train_dataloader()] == whole[1:]


def test_ranks_share_the_scenes() -> None:
    training = [
        [n for batch in opened(rank=rank, world_size=2).train_dataloader() for n in batch.name] for rank in (0, 1)
    ]
    assert not set(training[0]) & set(training[1])
    seen = [n for rank in range(3) for b in opened("validate", rank, 3).val_dataloader() for n in b.name]
    assert sorted(seen) == [f"synthetic/validation/{number:05d}" for number in range(10)]


def test_workers_draw_the_same() -> None:
    alone, shared = (
        torch.cat([batch.image for batch in opened(num_workers=workers).train_dataloader()]) for workers in (0, 2)
    )
    assert torch.equal(alone, shared)


def test_options_reach_the_scenes(folder: Path) -> None:
    data = opened(image_size=32, max_objects=2, textured=False, length=7, val_length=3, limit=None)
    scenes = open_scenes("synthetic", split="train", image_size=32, max_objects=2, textured=False)
    assert [len(data._scenes[split]) for split in ("train", "validation")] == [7, 3]
    assert data._scenes["train"][6].image.tobytes() == scenes[6].image.tobytes()
    data = opened(root=str(folder), limit=3, train_split="val", crop_mode="squash", std=[0.5] * 3)
    assert (data.name, data.item_shape, data.preprocessing["crop_mode"]) == ("folder", (3, 224, 224), "squash")
    assert data._scenes["train"].name(2) == str(folder / "val" / "images" / "2.jpg")
    assert (len(data._scenes["train"]), data.preprocessing["std"]) == (3, (0.5, 0.5, 0.5))
    assert data.describe() == f"folder in {folder}: 3 train, 3 validation scenes of 2 classes"


def test_scenes_of_different_numbers_of_segments_fit_in_a_batch(folder: Path) -> None:
    data = opened("validate", root=str(folder), image_size=16, eval_batch_size=6)
    (batch,) = data.val_dataloader()
    assert batch.classes.shape == (6, 8)
    assert batch.things.sum(1).tolist() == [1, 2, 3, 4, 5, 6]


def test_unreadable_scene_stops_or_is_skipped(folder: Path) -> None:
    mask = folder / "val" / "instances" / "1.png"
    truncate(mask)
    image = folder / "val" / "images" / "1.jpg"
    message = f"cannot read {image}: its mask {mask} cannot be read; repair or remove it, or pass --data.on_error skip"
    with pytest.raises(UnreadableImageError, match=message):
        list(opened("validate", root=str(folder), image_size=16).val_dataloader())
    truncate(folder / "val" / "images" / "4.jpg")
    data = opened("validate", root=str(folder), image_size=16, on_error="skip", eval_batch_size=1)
    batches = list(data.val_dataloader())
    assert [len(batch.image) for batch in batches] == [1, 0, 1, 1, 0, 1]
    assert (batches[1].segments.shape, batches[1].classes.shape) == ((0, 16, 16), (0, 1))
    assert [line.partition(":")[0] for line in data.broken("validation")] == [str(image), str(image.with_stem("4"))]


def test_training_puts_another_scene_in_its_place(folder: Path) -> None:
    truncate(folder / "train" / "images" / "1.jpg")
    data = opened(root=str(folder), image_size=16, on_error="skip", batch_size=6)
    (batch,) = data.train_dataloader()
    names = sorted(Path(name).stem for name in batch.name)
    assert names == ["0", "2", "2", "3", "4", "5"]
    assert len(data.broken("train")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "coco"}, "unknown data set 'coco' of scenes: one of synthetic, coco_panoptic, ade20k, folder"),
        ({"name": "synthetic", "root": "x"}, r"synthetic takes no --data.root \(x\)"),
        ({"name": "ade20k"}, "--data.name ade20k needs --data.root FOLDER, or choose --data.name synthetic"),
        ({"limit": 0}, "--data.limit must be at least 1, got 0"),
        ({"image_size": 0}, "--data.image_size must be at least 1"),
        ({"image_size": 8}, "image_size of synthetic scenes must be at least 16"),
        ({"hflip": 1.5}, "--data.hflip must be at least 0 and at most 1"),
        ({"interpolation": "random"}, "--data.interpolation must be one of nearest, .* got 'random'"),
        ({"crop_mode": "border"}, "--data.crop_mode must be one of center, squash, got 'border'"),
        ({"mean": [0.5]}, "--data.mean must have 3 values"),
        ({"stage": "predict"}, "use validate"),
    ],
)
def test_unfit_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(**options)


def test_limit_keeps_the_first_scenes() -> None:
    scenes, some = open_scenes("synthetic"), open_scenes("synthetic", limit=3)
    assert (len(some), some.name(2), some.class_names) == (3, scenes.name(2), scenes.class_names)
    assert some[2].image.tobytes() == scenes[2].image.tobytes()
    with pytest.raises(IndexError, match="there are 3 scenes, got number 3"):
        some[3]
    assert len(open_scenes("synthetic", limit=5_000)) == 1_000


@pytest.mark.slow
def test_real_images_in_batches(coco_panoptic_root: Path) -> None:
    data = opened(name="coco_panoptic", root=str(coco_panoptic_root), limit=None, batch_size=16, num_workers=2)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            assert batch.image.shape[1:] == (3, 224, 224)
            assert batch.image.isfinite().all()
            assert (batch.segments.amax((1, 2)) < batch.classes.shape[1]).all()
