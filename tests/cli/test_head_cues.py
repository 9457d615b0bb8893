"""The study of cues on a small model, with its files and tables."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import visionattn  # noqa: F401  registers its models
from visionattn.analysis.heads import Head, head_name
from visionattn.cli.head_cues import open_conflicts, study_cues
from visionattn.cli.heads import _naming_scenes
from visionattn.data import DataError
from visionattn.data.sources import open_source
from visionattn.errors import UserError
from visionattn.evaluation.as_trained import ImageOptions, open_images
from visionattn.evaluation.source import LoadedModel, load_model
from visionattn.objects.head_binding import open_binding_scenes
from visionattn.objects.session import BindingData

KWARGS = {"img_size": [64, 32], "patch_size": 16, "embed_dim": 24, "depth": 2, "num_classes": 10}


@pytest.fixture
def loaded(dominoes_root: Path) -> LoadedModel:
    with pytest.warns(UserWarning, match="random weights"):
        found = load_model("vit_nano_patch4_32", pretrained=False, model_kwargs=KWARGS)
    names = open_source("dominoes", str(dominoes_root), "test").class_to_idx
    return found._replace(spec=replace(found.spec, class_names=list(names or ())))


def test_study_writes_and_prints_what_it_finds(
    loaded: LoadedModel, dominoes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot = tmp_path / "cues.json", tmp_path / "cues.png"
    study, cuts = study_cues(
        loaded, str(dominoes_root), 12, sizes=(1, 3), orders=2, batch_size=5, device="cpu", output=output, plot=plot
    )
    assert study.wins.num_images == 12
    written = json.loads(output.read_text())
    assert written["wins"]["digit_wins"] == study.wins.digit_wins
    assert [each["head"] for each in written["heads"]] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert [(each["side"], len(each["heads"])) for each in written["cuts"]] == [
        *(("digit", 1), ("digit", 3), ("photo", 1), ("photo", 3)),
        *(("random", 1), ("random", 3), ("random", 1), ("random", 3)),
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"3 digit: {' '.join(map(head_name, cuts[1].heads))}" in printed
    assert "3 random: 2 orders" in printed
    assert f"{100 * study.wins.digit_wins:.1f}" in printed
    assert f"{study.heads[1, 2]['photo']:+.3f} ± {study.heads[1, 2]['photo_se']:.3f}" in printed


def test_study_is_the_same_twice_and_in_other_batches(loaded: LoadedModel, dominoes_root: Path) -> None:
    one, other = (study_cues(loaded, str(dominoes_root), 12, device="cpu", batch_size=size)[0] for size in (5, 12))
    for head, found in one.heads.items():
        assert other.heads[head] == pytest.approx(found, abs=1e-6)


def test_seed_chooses_the_random_orders(loaded: LoadedModel, dominoes_root: Path) -> None:
    def drawn(seed: int) -> list[list[Head]]:
        options: dict[str, Any] = {"sizes": (3,), "orders": 3, "device": "cpu", "seed": seed}
        _, cuts = study_cues(loaded, str(dominoes_root), 4, **options)
        return [cut.heads for cut in cuts if cut.side == "random"]

    assert drawn(1) == drawn(1) != drawn(2)


def test_images_are_grey_for_a_model_of_one_channel(
    dominoes_root: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(UserWarning, match="random weights"):
        grey = load_model("vit_nano_patch4_32", pretrained=False, model_kwargs=KWARGS | {"in_chans": 1})
    grey = grey._replace(spec=replace(grey.spec, class_names=loaded.spec.class_names))
    monkeypatch.setenv("HOME", str(dominoes_root))
    (batch,) = open_conflicts(grey, "~", 5, 8, torch.device("cpu"))
    assert batch.image.shape == (5, 1, 64, 32)
    assert study_cues(grey, "~", 5, sizes=(1,), orders=0, device="cpu")[0].wins.num_images == 5


def test_other_models_and_missing_data_are_refused(loaded: LoadedModel, dominoes_root: Path, tmp_path: Path) -> None:
    other = loaded._replace(spec=replace(loaded.spec, class_names=[str(number) for number in range(10)]))
    with pytest.raises(UserError, match="not have the classes of dominoes, 0 airplane, 1 automobile, …: train"):
        study_cues(other, str(dominoes_root))
    with pytest.raises(DataError, match="cifar10 is not, or not complete, in"):
        study_cues(loaded, str(tmp_path))
    with pytest.raises(UserError, match="--num_images must be at least 2"):
        study_cues(loaded, str(dominoes_root), 1)


def test_images_of_a_trained_model_keep_its_height_and_width(loaded: LoadedModel, dominoes_root: Path) -> None:
    spec = replace(loaded.spec, dataset="dominoes")
    data = open_images(spec, ImageOptions(root=str(dominoes_root), split="conflicts", batch_size=4, num_workers=0))
    batch = next(iter(data.val_dataloader()))
    assert batch.image.shape == (4, 3, 64, 32)
    assert batch.target.tolist() == [0, 0, 1, 1]
    square = open_images(spec, ImageOptions(root=str(dominoes_root), img_size=16, batch_size=4, num_workers=0))
    assert next(iter(square.val_dataloader())).image.shape == (4, 3, 16, 16)


def test_scenes_are_square(loaded: LoadedModel) -> None:
    with (
        pytest.raises(UserError, match=r"takes 64×32 images, not square ones: choose --scenes\.img_size N"),
        _naming_scenes(),
    ):
        open_binding_scenes(loaded, BindingData())
