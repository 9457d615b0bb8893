"""The DataModule for re-identification: who is in a batch, in which order, on which rank, and what is told."""

import re
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from visionattn.data import DataError, ReidBatch, ReidData, UnreadableImageError

TRAINED = [2, 7, 10, 11]  # the identities of the market fixture
NOT_WHOLE = "is not the whole of"

pytestmark = pytest.mark.filterwarnings(f"ignore:.*{NOT_WHOLE}")


def opened(root: Path | None, stage: str = "fit", rank: int = 0, world_size: int = 1, **options: Any) -> ReidData:
    defaults = {"height": 16, "width": 8, "batch_size": 4, "instances": 2, "num_workers": 0, "seed": 0}
    data = ReidData(root=None if root is None else str(root), **{**defaults, **options})
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    data.setup(stage)
    return data


def epoch(data: ReidData, number: int = 0) -> list[ReidBatch]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(number)  # type: ignore[union-attr]
    return list(loader)


def named(path: str) -> tuple[int, int]:
    """Identity and camera as Market-1501's names say them."""
    match = re.match(r"(-?\d+)_c(\d)", Path(path).name)
    assert match is not None
    return int(match[1]), int(match[2])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_batches_hold_identities_and_say_who_they_are(market: Path) -> None:
    data = opened(market)
    images = sorted((market / "bounding_box_train").iterdir())
    batches = epoch(data)
    assert len(batches) == len(data.train_dataloader()) == 4
    for batch in batches:
        assert batch.image.shape == (4, 3, 16, 8)
        assert sorted(Counter(batch.target.tolist()).values()) == [2, 2]
        for name, target, camera, index in zip(batch.name, batch.target, batch.camera, batch.index, strict=True):
            assert (TRAINED[target], camera) == named(name)
            assert str(images[index]) == name
    assert data.class_names == [str(pid) for pid in TRAINED]
    assert data.num_classes == 4


def test_queries_come_before_the_gallery(market: Path) -> None:
    data = opened(market, "validate", eval_batch_size=5)
    query, gallery = (sorted((market / folder).iterdir()) for folder in ("query", "bounding_box_test"))
    kept = [path for path in gallery if not path.name.startswith("-1")]
    assert len(kept) == 7
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        assert [len(batch.image) for batch in batches] == [5, 5]
        names = [name for batch in batches for name in batch.name]
        assert names == [str(path) for path in [*query, *kept]]
        ids, cameras = (torch.cat([getattr(batch, what) for batch in batches]) for what in ("target", "camera"))
        assert list(zip(ids.tolist(), cameras.tolist(), strict=True)) == [named(name) for name in names]
        assert torch.cat([batch.index for batch in batches]).tolist() == list(range(10))
    assert (data.num_query, data.protocol) == (3, "camera")


def test_evaluation_is_neither_shuffled_nor_augmented(market: Path) -> None:
    def images(**options: Any) -> torch.Tensor:
        return torch.cat([batch.image for batch in opened(market, "validate", **options).val_dataloader()])

    assert torch.equal(images(), images(seed=3, hflip=1.0, re_prob=1.0, padding=5))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_the_images(market: Path, world_size: int) -> None:
    parts = [opened(market, rank=rank, world_size=world_size) for rank in range(world_size)]
    evaluated = [[index for batch in data.val_dataloader() for index in batch.index.tolist()] for data in parts]
    assert sorted(index for part in evaluated for index in part) == list(range(10))
    assert len({len(data.val_dataloader()) for data in parts}) == 1
    trained = [[name for batch in epoch(data) for name in batch.name] for data in parts]
    assert {len(names) for names in trained} == {4 * (4 // world_size)}
    names = [name for part in trained for name in part]
    assert len(names) == len(set(names))


def test_epoch_is_a_function_of_its_seed_and_number(market: Path) -> None:
    def seen(number: int, **options: Any) -> tuple[list[str], torch.Tensor]:
        batches = epoch(opened(market, **options), number)
        return [name for batch in batches for name in batch.name], torch.cat([batch.image for batch in batches])

    names, images = seen(1)
    for options in ({}, {"num_workers": 2}):
        again = seen(1, **options)
        assert again[0] == names
        assert torch.equal(again[1], images)
    assert seen(2)[0] != names
    assert seen(1, seed=1)[0] != names


class Recorder(Callback):
    """Keeps the names and sums of all batches, and a checkpoint after some of them."""

    def __init__(self, path: Path, after: int) -> None:
        self.path, self.after = path, after
        self.seen: list[tuple[list[str], float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, out: Any, batch: ReidBatch, batch_idx: int) -> None:
        self.seen.append((batch.name, batch.image.sum().item()))
        if len(self.seen) == self.after:
            trainer.save_checkpoint(self.path)


class Learner(LightningModule):
    """One number, which learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: ReidBatch, batch_idx: int) -> torch.Tensor:
        return self.number * len(batch.image)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.number], lr=0.1)


@pytest.mark.parametrize("after", [3, 6, 8], ids=["first epoch", "second epoch", "between epochs"])
def test_resumed_run_continues_at_the_next_batch(market: Path, tmp_path: Path, after: int) -> None:
    def fit(recorder: Recorder, resume: Path | None = None) -> list[tuple[list[str], float]]:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=3,
            callbacks=[recorder],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        data = ReidData(root=str(market), height=16, width=8, batch_size=4, instances=2, num_workers=0, seed=0)
        trainer.fit(Learner(), datamodule=data, ckpt_path=resume)
        return recorder.seen

    path = tmp_path / "middle.ckpt"
    whole = fit(Recorder(path, after))
    assert len(whole) == 12
    assert len({tuple(names) for names, _ in whole}) == 12
    assert fit(Recorder(path, -1), path) == whole[after:]


@pytest.mark.parametrize("broken", ["bounding_box_train/0002_c2s1_000004_00.jpg", "query/0004_c4s1_000000_00.jpg"])
def test_broken_image_is_named(market: Path, broken: str) -> None:
    truncate(market / broken)
    data = opened(market)
    with pytest.raises(UnreadableImageError, match=rf"cannot read .*{broken}: .*--data.on_error skip"):
        # An epoch leaves out one training image in five.
        [epoch(data, number) for number in range(4)] if "train" in broken else list(data.val_dataloader())


def test_broken_image_is_replaced_with_the_identity_of_its_replacement(market: Path) -> None:
    # The last one of an identity: what comes next shows somebody else.
    broken = market / "bounding_box_train" / "0002_c2s1_000004_00.jpg"
    truncate(broken)
    data = opened(market, on_error="skip")
    loader = data.train_dataloader()
    for number in range(4):
        loader.batch_sampler.set_epoch(number)  # type: ignore[union-attr]
        for batch in loader:
            assert len(batch.image) == 4
            assert str(broken) not in batch.name
            found = zip(batch.target.tolist(), batch.camera.tolist(), strict=True)
            assert [(TRAINED[target], camera) for target, camera in found] == [named(name) for name in batch.name]
    assert len(data.broken("train")) == 1
    assert str(broken) in data.broken("train")[0]


def test_broken_image_is_left_out_of_the_evaluation_and_counted(market: Path) -> None:
    (market / "query" / "0003_c4s1_000000_00.jpg").write_bytes(b"")
    truncate(market / "bounding_box_test" / "0005_c6s2_000000_01.jpg")
    data = opened(market, "validate", on_error="skip", eval_batch_size=1)
    batches = list(data.val_dataloader())
    assert torch.cat([batch.index for batch in batches]).tolist() == [1, 2, *range(3, 9)]
    for batch in batches:
        assert list(zip(batch.target.tolist(), batch.camera.tolist(), strict=True)) == [*map(named, batch.name)]
    assert [batches[0].image.shape, batches[0].camera.shape] == [(0, 3, 16, 8), (0,)]
    assert len(data.broken("validation")) == 2


def test_differences_from_the_published_data_set_warn_once(market: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = opened(market)
        data.setup("fit")
        data.setup("validate")
        data.describe()
        assert data.num_classes == 4
    (message,) = [str(warning.message) for warning in caught if NOT_WHOLE in str(warning.message)]
    assert message.startswith(f"{market} is not the whole of Market-1501, or other images in its layout: ")
    assert "train has 20 images of 4 identities (published: 12,936 images of 751 identities)" in message
    assert "query has 3 images of 3 identities (published: 3,368 images of 750 identities)" in message
    assert "gallery has 7 images of 3 identities (published: 15,913 images)" in message


def test_evaluation_needs_no_training_images(market: Path) -> None:
    for path in (market / "bounding_box_train").iterdir():
        path.unlink()
    data = opened(market, "validate")
    assert data.num_query == 3
    assert data.describe() == f"{market}: 3 queries and 7 gallery images of 3 identities"
    with pytest.raises(DataError, match="no train images"):
        opened(market, "fit")


def test_description_names_the_sizes(market: Path) -> None:
    assert opened(market).describe() == (
        f"{market}: 20 train images of 4 identities, 3 queries and 7 gallery images of 3 identities"
    )
    embedded = opened(None).describe()
    assert embedded == (
        "identities: 768 train images of 64 identities, 192 queries and 448 gallery images of 48 identities"
    )


def test_first_identity_of_msmt17_counts(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for name in ("train", "query", "gallery"):
        (tmp_path / f"list_{name}.txt").write_text("0000/0000_000_01_0_0_0.jpg 0\n0001/0001_000_01_0_0_0.jpg 1\n")
    described = opened(tmp_path, name="msmt17").describe()
    assert described.endswith("2 train images of 2 identities, 2 queries and 2 gallery images of 2 identities")


def test_vehicleid_has_no_queries(tmp_path: Path, write_images) -> None:  # type: ignore[no-untyped-def]
    write_images(tmp_path / "image", "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "train_test_split").mkdir()
    (tmp_path / "train_test_split" / "test_list_1600.txt").write_text("3 8\n1 8\n2 9\n")
    data = opened(tmp_path, "validate", name="vehicleid", gallery_size=1600)
    (batch,) = data.val_dataloader()
    assert batch.target.tolist() == [8, 8, 9]
    assert (data.num_query, data.protocol) == (0, "vehicleid")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("market1501", (3, 256, 128)),
        ("msmt17", (3, 256, 128)),
        ("veri776", (3, 256, 256)),
        ("vehicleid", (3, 256, 256)),
    ],
)
def test_images_are_as_large_as_in_papers(tmp_path: Path, name: str, shape: tuple[int, int, int]) -> None:
    data = ReidData(name, str(tmp_path))
    assert data.item_shape == shape
    assert data.preprocessing["mean"] == data.preprocessing["std"] == (0.5, 0.5, 0.5)
    assert (data.batch_size, data.instances) == (64, 4)
    assert data.augmentation == {"hflip": 0.5, "padding": 10, "re_prob": 0.5, "re_mode": "pixel"}


def test_embedded_images_need_no_folder() -> None:
    data = ReidData(batch_size=8, seed=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (8, 3, 64, 32)
    assert sorted(Counter(batch.target.tolist()).values()) == [4, 4]
    assert data.num_workers == 0
    assert data.num_classes == 64


def test_resumed_checkpoint_keeps_its_identities(market: Path) -> None:
    data = ReidData(root=str(market), num_workers=0)
    data.expect_classes(["2", "7", "10", "12"])
    data.setup("validate")
    assert data.num_classes == 4
    with pytest.raises(DataError, match=r"not those of the checkpoint: classes 11, 12 on one side.*checkpoint_path"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "market"}, "unknown data set 'market' for re-identification: one of identities, market1501, "),
        ({"name": "identities", "root": "x"}, r"identities takes no --data.root \(x\)"),
        ({"name": "market1501"}, "market1501 needs --data.root FOLDER. Nothing is downloaded"),
        ({"name": "dukemtmc"}, "dukemtmc needs --data.root FOLDER.*withdrawn"),
        ({"batch_size": 10}, "batch_size 10 must be a multiple of --data.instances 4"),
        ({"batch_size": 4}, "batch_size 4 must .*at least two identities"),
        ({"instances": 1}, "instances 1, which is at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "--data.eval_batch_size must be at least 1, got 0"),
        ({"train_val": True}, "train_val is for msmt17: identities has no validation images"),
        ({"gallery_size": 800}, "gallery_size is for vehicleid, one of 800, 1600, 2400: got 800 for identities"),
        ({"name": "vehicleid", "root": "x", "gallery_size": 900}, "one of 800, 1600, 2400: got 900 for vehicleid"),
        ({"hflip": 1.5}, "hflip must be at least 0 and at most 1, got 1.5"),
        ({"re_prob": -0.1}, "re_prob must be at least 0 and at most 1, got -0.1"),
        ({"padding": -1}, "padding must be at least 0, got -1"),
        ({"mean": [0.5]}, r"mean must have 3 values, got \[0.5\]"),
        ({"std": [0.5, 0.5]}, r"std must have 3 values"),
        ({"height": 0}, "height must be at least 1 .*, got 0"),
        ({"width": -4}, "width must be at least 1 .*, got -4"),
        ({"re_mode": "snow"}, "re_mode must be one of const, rand, pixel, got 'snow'"),
        ({"interpolation": "cubist"}, "interpolation must be one of .*bicubic.*, got 'cubist'"),
    ],
    ids=str,
)
def test_unsuitable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ReidData(**options)


def test_too_few_identities_for_a_batch_are_refused(market: Path) -> None:
    with pytest.raises(DataError, match=r"needs 16 identities, and the data set has 4: pass --data.batch_size 16"):
        opened(market, batch_size=64, instances=4).train_dataloader()


def test_gallery_of_the_queries_camera_is_refused_at_once(market: Path) -> None:
    for folder in ("query", "bounding_box_test"):
        for path in (market / folder).iterdir():
            path.rename(path.with_name(re.sub("_c[0-9]", "_c1", path.name)))
    with pytest.raises(DataError, match=r"none of the \d+ queries of .*; the gallery has 1 camera"):
        opened(market).val_dataloader()


def test_predict_is_refused(market: Path) -> None:
    with pytest.raises(DataError, match=r"use eval.py reid"):
        opened(market, "predict")
