"""Files that are not images, and unusual images."""

import csv
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from visionattn.cli.errors import describe
from visionattn.data import ImageClassificationData, UnreadableImageError
from visionattn.data.images import read_image

Run = Callable[..., Any]
Fails = Callable[..., str]
Quick = tuple[str, ...]
Write = Callable[[Path], object]

NOISE = Image.effect_noise((40, 30), 80).convert("RGB")


def cut(suffix: str) -> Write:
    def write(path: Path) -> None:
        NOISE.save(path, suffix)
        path.write_bytes(path.read_bytes()[:-400])

    return write


def corrupt_png(path: Path) -> None:
    NOISE.save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)


def numbers(dtype: type, *values: float) -> Write:
    return lambda path: Image.fromarray(np.full((8, 8), values[0], dtype)).save(path, "TIFF")


def opened(root: Path, stage: str = "fit", **options: Any) -> ImageClassificationData:
    data = ImageClassificationData(root=str(root), img_size=16, batch_size=4, num_workers=0, seed=0, **options)
    data.setup(stage)
    return data


@pytest.mark.parametrize(
    ("write", "says"),
    [
        pytest.param(cut("JPEG"), "image file is truncated", id="cut JPEG"),
        pytest.param(cut("PNG"), "image file is truncated", id="cut PNG"),
        pytest.param(corrupt_png, "unrecognized data stream contents", id="corrupt PNG"),
        pytest.param(Path.touch, "not an image that Pillow knows", id="empty file"),
        pytest.param(lambda path: path.write_text("hello"), "not an image that Pillow knows", id="text"),
        pytest.param(lambda path: path.symlink_to("gone"), "No such file or directory", id="broken link"),
        pytest.param(numbers(np.float32, 0.5), "its pixels are floating-point numbers", id="floats"),
        pytest.param(numbers(np.float32, np.nan), "its pixels are floating-point numbers", id="NaN"),
        pytest.param(numbers(np.int32, 70000), "its pixels are 32-bit integers", id="32 bits"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_undecodable_file_is_named(colour_folder: Path, write: Write, says: str, split: str) -> None:
    broken = colour_folder / split / "red" / "1.jpg"
    broken.unlink()
    write(broken)
    data = opened(colour_folder)
    with pytest.raises(UnreadableImageError) as error:
        list(data.train_dataloader() if split == "train" else data.val_dataloader())
    line = describe(error.value)
    assert line.startswith(f"cannot read {broken}: {says}")
    assert line.endswith("repair or remove it, or pass --data.on_error skip")

    data = opened(colour_folder, on_error="skip")
    batches = list(data.train_dataloader() if split == "train" else data.val_dataloader())
    assert sum(len(batch.image) for batch in batches) == (12 if split == "train" else 8)
    (told,) = data.broken("train" if split == "train" else "validation")
    assert told.startswith(f"{broken}: {says}")


def test_image_without_permission_is_named(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, as root may read everything."""
    locked, original = colour_folder / "val" / "red" / "1.jpg", Image.open

    def guarded(path: str) -> Any:
        if path == str(locked):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(Image, "open", guarded)
    with pytest.raises(UnreadableImageError, match=f"cannot read {locked}: Permission denied; repair or remove it"):
        list(opened(colour_folder).val_dataloader())


def test_very_large_image_is_read_and_a_bomb_is_refused(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns above 89 million pixels and refuses above 179 million."""
    path = colour_folder / "val" / "red" / "1.jpg"
    Image.new("RGB", (60, 60)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.warns(Image.DecompressionBombWarning, match="3600 pixels"):
        assert sum(len(batch.image) for batch in opened(colour_folder).val_dataloader()) == 9
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    with pytest.raises(UnreadableImageError, match=f"cannot read {path}: it has more than 0 million pixels: scale it"):
        list(opened(colour_folder).val_dataloader())


@pytest.mark.slow
def test_image_of_a_hundred_million_pixels_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 10_000), (10, 20, 30)).save(tmp_path / "x.jpg")
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_image(tmp_path / "x.jpg").size == (10_000, 10_000)


def save(image: Image.Image, suffix: str, **options: Any) -> Write:
    return lambda folder: image.save(folder / f"x.{suffix}", **options)


def frames(suffix: str) -> Write:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((0, 0, 255), (255, 0, 0)))
    return save(first, suffix, save_all=True, append_images=[second], lossless=True)


PALETTE = Image.new("P", (8, 8), 1)
PALETTE.putpalette([9, 9, 9, 200, 100, 50])


@pytest.mark.parametrize(
    ("write", "colour"),
    [
        pytest.param(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpg"), (255, 0, 0), id="CMYK"),
        pytest.param(save(Image.new("I;16", (8, 8), 32896), "png"), (128, 128, 128), id="16-bit PNG"),
        pytest.param(save(Image.new("I;16", (8, 8), 257), "tiff"), (1, 1, 1), id="16-bit TIFF"),
        pytest.param(save(Image.new("I;16", (8, 8), 65535), "pgm"), (255, 255, 255), id="16-bit PGM"),
        pytest.param(save(PALETTE, "png", transparency=b"\x00\x80"), (200, 100, 50), id="palette"),
        pytest.param(save(Image.new("RGBA", (8, 8), (200, 100, 50, 0)), "png"), (200, 100, 50), id="RGBA"),
        pytest.param(save(Image.new("LA", (8, 8), (70, 0)), "png"), (70, 70, 70), id="LA"),
        pytest.param(save(Image.new("1", (8, 8), 1), "png"), (255, 255, 255), id="1 bit"),
        pytest.param(frames("gif"), (0, 0, 255), id="GIF"),
        pytest.param(frames("webp"), (0, 0, 255), id="WebP"),
        pytest.param(frames("png"), (0, 0, 255), id="APNG"),
    ],
)
def test_unusual_image_has_the_expected_colours(tmp_path: Path, write: Write, colour: tuple[int, int, int]) -> None:
    write(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = opened(tmp_path, "predict", mean=[0] * 3, std=[1] * 3)
        (batch,) = data.predict_dataloader()
    assert batch.image.shape == (1, 3, 16, 16)
    assert (batch.to("cpu").image[0, :, 8, 8] * 255).round().tolist() == pytest.approx(colour, abs=2)


def test_16_bit_images_are_equal_in_every_format(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    for suffix in ("png", "tiff", "pgm"):
        Image.fromarray(ramp).save(tmp_path / f"x.{suffix}")
        for mode in ("RGB", "L"):
            read = np.asarray(read_image(tmp_path / f"x.{suffix}", mode)).reshape(256, -1)
            assert (read == np.arange(256)[:, None]).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_image_is_turned_upright_by_its_exif_block(tmp_path: Path, suffix: str) -> None:
    stored = Image.new("RGB", (32, 16), (0, 0, 0))
    stored.paste((255, 255, 255), (0, 0, 16, 16))  # the left half, which is the upper one for who turns it right
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / folder).mkdir(parents=True)
        stored.save(tmp_path / folder / f"x.{suffix}", exif=exif)
    data = opened(tmp_path, no_aug=True, crop_mode="squash", mean=[0] * 3, std=[1] * 3)
    seen = [next(iter(loader)).to("cpu").image[0] for loader in (data.train_dataloader(), data.val_dataloader())]
    data.setup("predict")
    seen.append(next(iter(data.predict_dataloader())).to("cpu").image[0])
    for image in seen:
        assert image[:, 2].min() > 0.9
        assert image[:, -3].max() < 0.1


def test_image_with_a_damaged_exif_block_is_read_as_stored(tmp_path: Path) -> None:
    """The block turns the image, but holds text as the horizontal resolution, which Pillow cannot parse."""
    entries = struct.pack(">IHHHIHHHHIII", 8, 2, 0x112, 3, 1, 6, 0, 0x11A, 2, 6, 38, 0)
    NOISE.save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*" + entries + b"maker\0")
    assert read_image(tmp_path / "x.jpg").size == NOISE.size


def test_folder_named_like_an_image_is_skipped(colour_folder: Path) -> None:
    (colour_folder / "val" / "red" / "9.jpg").mkdir()
    assert sum(len(batch.image) for batch in opened(colour_folder).val_dataloader()) == 9


def test_folder_linked_twice_is_an_error(colour_folder: Path, quick: Quick, fails: Fails) -> None:
    (colour_folder / "val" / "red" / "again").symlink_to("..")
    fails(
        "fit", *quick, f"--data.root={colour_folder}", says=("val/red/again/", "once more, by a symbolic link: remove")
    )


def test_unusual_file_names_are_kept(tmp_path: Path, quick: Quick, command: Run, fails: Fails) -> None:
    names = [
        "ünï çødé 猫.jpg",
        " two  spaces.jpg",
        "line\nbreak.jpg",
        "'quotes\".jpg",
        "x" * 240 + ".jpg",
        "-dash,comma.png",
    ]
    for split in ("train", "val"):
        for label in ("größe 1", "b\nc"):
            (tmp_path / "ö p" / split / label).mkdir(parents=True)
            for name in names:
                NOISE.save(tmp_path / "ö p" / split / label / name)
    root = f"--data.root={tmp_path / 'ö p'}"
    assert command("fit", *quick, root, "--run_name=x").status == 0
    predict = ["predict", "--ckpt_path=last", "--run_name=x", root, "--output=p.csv", "--trainer.accelerator=cpu"]
    assert command(*predict, "--data.num_workers=0").status == 0
    with Path("p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["file"]).name for row in rows} == set(names)
    assert {row["class"] for row in rows} <= {"größe 1", "b\nc"}
    (tmp_path / "ö p" / "train" / "b\nc" / names[2]).write_text("")
    fails(
        "fit", *quick, root, "--trainer.limit_train_batches=1.0", says=("cannot read ", "line break.jpg: not an image")
    )


def test_image_damaged_during_training_is_named(colour_folder: Path, quick: Quick, command: Run, fails: Fails) -> None:
    options = [*quick, f"--data.root={colour_folder}", "--trainer.limit_train_batches=1.0", "--run_name=x"]
    assert command("fit", *options).status == 0
    last = Path("runs/x/0/checkpoints/last.ckpt")
    kept = last.read_bytes()
    broken = colour_folder / "train" / "red" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    again = [*options, "--trainer.max_epochs=2", "--ckpt_path=last"]
    fails("fit", *again, says=(f"cannot read {broken}: ", "--data.on_error skip"))
    assert last.read_bytes() == kept
    ended = command("fit", *again, "--data.on_error=skip")
    assert ended.status == 0
    assert f"1 unreadable train image replaced; first {broken}: " in ended.out
    assert torch.load(last, weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_of_broken_images_only_is_an_error(
    colour_folder: Path, quick: Quick, fails: Fails, checkpoint: Path, split: str
) -> None:
    for path in (colour_folder / split).glob("*/*"):
        path.write_text("")
    options = [f"--data.root={colour_folder}", "--data.on_error=skip"]
    says = {"train": "12 unreadable images in a row", "val": "not one validation image could be read"}[split]
    fails("fit", *quick, *options, "--trainer.limit_val_batches=1.0", says=says)
    if split == "val":
        fails("classify", f"--checkpoint={checkpoint}", "--device=cpu", *options, says="not one image could be read")
