"""Sheets of attention, and visionattn look from the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import visionattn
from visionattn.__main__ import dispatch
from visionattn.analysis import attention_sheets
from visionattn.analysis.attention import attention_layers, record_attention
from visionattn.analysis.looking import SHEETS, draw_sheets
from visionattn.analysis.subject import LookOptions, NoSheetError, Subject, load_random, prepare_subject
from visionattn.cli.errors import run
from visionattn.probing.classifier import ProbeClassifier
from visionattn.probing.frozen import FrozenBackbone
from visionattn.probing.heads import create_head


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Make a folder of images of several sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(5):
        pixels = noise.integers(0, 255, (40 + 8 * number, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list of the rows that sheets of attention draw."""
    rows: list[Any] = []

    def keep(found: Any, *args: Any, **options: Any) -> Any:
        rows.extend(found)
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr("visionattn.viz.head_maps.draw_head_maps", keep)
    return rows


def subject_of(name: str, **kwargs: Any) -> Subject:
    torch.manual_seed(0)
    loaded = load_random(name, kwargs)
    size = loaded.spec.preprocessing["input_size"][-1]
    images = torch.randn(2, 3, size, size)
    return Subject(loaded, images, np.zeros((2, size, size, 3), np.uint8), ["a", "b"])


def weights_of(subject: Subject, number: int) -> Any:
    layers = attention_layers(subject.model)
    with record_attention({0: layers[number]}) as found, torch.no_grad():
        subject.model(subject.images[1:])
    return found[0]


def test_attention_sheet_has_the_class_token_of_each_head(drawn: list[Any]) -> None:
    subject = subject_of("vit_nano_patch4_32")
    attention_sheets.draw_attention(subject, LookOptions(blocks=(0, -1), heads=(2, 0)))
    assert [row.captions[1:] for row in drawn] == [["head 2", "head 0", "mean of all heads"]] * 4
    assert [row.captions[0] for row in drawn] == ["block 0: 8x8", "block 5: 8x8"] * 2
    weights = weights_of(subject, -1).weights[0, :, 0, 1:].unflatten(-1, (8, 8))
    expected = torch.stack([weights[2], weights[0], weights.mean(0)])
    np.testing.assert_allclose(drawn[3].maps, expected, rtol=1e-5)


def test_rollout_sheet_is_the_product_of_all_blocks(drawn: list[Any]) -> None:
    subject = subject_of("vit_nano_patch4_32")
    attention_sheets.draw_rollout(subject, LookOptions(blocks=(0, 3)))
    product = torch.eye(65)
    for number in range(4):
        own = 0.5 * weights_of(subject, number).weights[0].mean(0) + 0.5 * torch.eye(65)
        product = own @ product
        if number in (0, 3):
            found = drawn[1].maps[0 if number == 0 else 1]
            np.testing.assert_allclose(found, product[0, 1:].view(8, 8), rtol=1e-4)
    assert drawn[1].captions == ["image", "to block 0", "to block 3"]


def test_window_sheet_has_the_last_block_of_each_size_and_marks_the_point(drawn: list[Any]) -> None:
    subject = subject_of("halo_pico")
    attention_sheets.draw_window(subject, LookOptions(point=(0.3, 0.6)))
    assert [row.captions[0] for row in drawn[:3]] == ["block 2: 16x16", "block 5: 8x8", "block 6: 4x4"]
    assert [row.point for row in drawn[:2]] == [(8, 4), (4, 2)], "on the keys, of which block 2 has every second query"
    strided = drawn[2]
    assert strided.point == (2, 1)
    for row in drawn:
        assert row.window[row.point]
        assert not np.asarray(row.maps)[:, ~row.window].any()
        assert row.notes[0] == f"max {row.maps[0].max():.1%}"


def test_model_without_class_token_shows_the_point_in_its_attention_sheet(drawn: list[Any]) -> None:
    subject = subject_of("test_vit4", img_size=32, patch_size=8)
    attention_sheets.draw_attention(subject, LookOptions(point=(0, 1)))
    assert drawn[0].point == (3, 0)
    with pytest.raises(NoSheetError, match="test_vit4 has no class token"):
        attention_sheets.draw_rollout(subject, LookOptions())


def test_head_on_an_early_layer_shows_all_blocks_of_its_backbone(drawn: list[Any]) -> None:
    subject = subject_of("vit_nano_patch4_32")
    backbone = FrozenBackbone(subject.model, "vit_nano_patch4_32", [0])
    classifier = ProbeClassifier(backbone, create_head("linear", 96, 2), [0], ["a", "b"])
    head = Subject(subject.loaded._replace(model=classifier), subject.images, subject.pixels, subject.names)
    attention_sheets.draw_attention(head, LookOptions())
    assert [row.captions[0] for row in drawn] == ["block 5: 8x8"] * 2


def test_command_draws_what_the_model_has(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    kinds = "attention,rollout,window"
    argv = ["look", "vit_nano_patch4_32.cifar10", str(photos), "--show", kinds, "--output", str(output)]
    assert run(dispatch, [*argv, "--max_images=2", "--device=cpu", "--height=40"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "2 of 5 images, evenly spaced; --max_images sets their number"
    assert [line.split(": ")[0] for line in out[2:]] == [str(output / f"{kind}.png") for kind in kinds.split(",")]
    for kind in kinds.split(","):
        assert Image.open(output / f"{kind}.png").size[1] > 2 * 40


def test_one_kind_goes_to_a_file_and_random_weights_are_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles: list[str] = []

    def keep(rows: Any, *, title: str, **options: Any) -> Any:
        titles.append(f"{title} {float(np.sum(rows[0].maps[0])):.6f}")
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr("visionattn.viz.head_maps.draw_head_maps", keep)
    file = tmp_path / "window.png"
    argv = ["look", "nat_pico", str(photos / "1.png"), "--random", "--show=window", f"--output={file}", "--device=cpu"]
    assert run(dispatch, argv) == 0
    assert run(dispatch, argv) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == f"{file}: {SHEETS['window'].shows}"
    assert "random weights" not in captured.err
    assert titles[0].startswith("nat_pico, random weights: attention of the marked point (0.5, 0.5)")
    assert titles[0] == titles[1], "the same weights each time"


def test_look_returns_sheets_and_takes_other_sizes(photos: Path) -> None:
    sizes = []
    for size in (None, 64):
        model = visionattn.load_model("vit_nano_patch4_32.cifar10")
        sheets = visionattn.look(model, photos / "0.png", show="attention", img_size=size, height=40)
        assert sorted(sheets) == ["attention"]
        assert sheets["attention"].dtype == np.uint8
        sizes.append(getattr(model.model, "patch_embed").grid_size)  # noqa: B009  timm's models have no common type
    assert sizes == [(8, 8), (16, 16)]


def test_each_sheet_over_images_shows_its_progress(photos: Path) -> None:
    said: list[tuple[str, str, int, int | None]] = []

    @contextmanager
    def progress(description: str, unit: str) -> Iterator[Any]:
        yield lambda done, total: said.append((description, unit, done, total))

    model = visionattn.load_model("vit_nano_patch4_32.cifar10")
    subject = prepare_subject(model, photos, max_images=2, device="cpu", progress=progress)
    kinds = ["attention", "gradcam", "saliency"]
    assert [kind for kind, _ in draw_sheets(subject, kinds, LookOptions(height=40))] == kinds
    works = ["attention", "Grad-CAM", "saliency"]
    assert said == [(work, "images", done, 2) for work in works for done in (1, 2)]
