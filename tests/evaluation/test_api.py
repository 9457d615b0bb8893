"""Evaluation as functions: the figures of the commands, and figures computed another way."""

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import visionattn
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.data import ReidData
from visionattn.data.scenes import SceneData
from visionattn.evaluation import (
    Conditions,
    IdentityOptions,
    ImageOptions,
    ModelSource,
    SceneOptions,
    ThroughputRow,
    evaluate_classifier,
    evaluate_reid,
    evaluate_slots,
    measure_throughput,
    open_images,
)
from visionattn.evaluation import throughput as module
from visionattn.evaluation.source import draw_weights
from visionattn.metrics.object_discovery import foreground_ari
from visionattn.metrics.retrieval import evaluate_retrieval
from visionattn.models.slots import encode
from visionattn.tasks.object_discovery import SLOTS, create_slots
from visionattn.training import ModelSpec, create_model

TIMING = ("images_per_second", "seconds")
"""Figures that differ between two runs."""

PROVENANCE = ("hardware", "versions", "git_revision", "command")
"""Columns that the commands add to a result."""


def written(folder: Path, *argv: object) -> str:
    """The JSON that a command writes, without timing and provenance."""
    output = folder / "result.json"
    assert run(main, [str(word) for word in (*argv, "--device", "cpu", "--output", output)]) == 0
    result = json.loads(output.read_text())
    assert set(PROVENANCE) <= set(result)
    return as_json({key: value for key, value in result.items() if key not in PROVENANCE})


def as_json(result: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in result.items() if key not in TIMING}, indent=2)


@pytest.fixture(scope="module")
def slots_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of object discovery, as training writes it, with random weights."""
    torch.manual_seed(0)
    kwargs = {"embed_dims": [8, 8], "kernel_sizes": [5, 3], "strides": [2, 2]}
    encoder = create_model("slot_cnn_pico", num_classes=0, **kwargs)
    options: dict[str, Any] = dict.fromkeys(SLOTS) | {
        "method": "slot_attention",
        "num_slots": 4,
        "slot_dim": 8,
        "iterations": 3,
        "slot_init": "gaussian",
        "implicit": False,
        "guided": True,
        "decoder_dim": 8,
        "decoder_grid": 4,
        "decoder_strides": (1,),
        "decoder_kernel": 1,
        "decoder_patch": 2,
    }
    slots = create_slots(encoder, "slot_cnn_pico", (3, 16, 16), options)
    weights = {f"model.{name}": value for name, value in encoder.state_dict().items()}
    weights |= {f"slots.{name}": value for name, value in slots.state_dict().items()}
    preprocessing = {
        "input_size": (3, 16, 16),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    spec = ModelSpec("slot_cnn_pico", kwargs, 0, [], preprocessing, "synthetic", "object_discovery")
    path = tmp_path_factory.mktemp("slots") / "best.ckpt"
    torch.save({"state_dict": weights, "visionattn": spec.to_dict(), "hyper_parameters": options}, path)
    return path


# Loading


def test_load_model_tells_files_from_names(checkpoint, tmp_path):
    loaded = visionattn.load_model(checkpoint)
    assert (loaded.spec.model, loaded.spec.num_classes) == ("test_resnet", 3)
    assert asdict(loaded.origin) == {"checkpoint": str(checkpoint), "weights": "average"}
    assert visionattn.load_model(str(checkpoint), weights="raw").origin.weights == "raw"
    torch.save(loaded.model.state_dict(), tmp_path / "plain.pth")
    plain = visionattn.load_model(tmp_path / "plain.pth", model="test_resnet")
    assert plain.origin.weights == "file"
    with pytest.warns(UserWarning, match="test_resnet has random weights"):
        named = visionattn.load_model("test_resnet", pretrained=False, model_kwargs={"num_classes": 5})
    assert (named.spec.num_classes, named.origin.checkpoint, named.origin.weights) == (5, None, "random")
    assert not named.model.training
    for gone in ("gone.ckpt", "runs/gone"):
        with pytest.raises(FileNotFoundError, match=gone):
            visionattn.load_model(gone)
    with pytest.raises(ValueError, match="unknown model 'resnt18': did you mean"):
        visionattn.load_model("resnt18")
    with pytest.raises(ValueError, match="name different weights"):
        visionattn.load_model(checkpoint, pretrained=True)


@pytest.mark.filterwarnings("ignore:test_resnet has random weights")
def test_transform_prepares_an_image_as_the_spec_says(checkpoint):
    loaded = visionattn.load_model(checkpoint)
    image = Image.new("RGB", (48, 40), (255, 0, 0))
    tensor = loaded.transform()(image)
    preprocessing = loaded.spec.preprocessing
    assert tensor.shape == tuple(preprocessing["input_size"])
    mean, std = (torch.tensor(preprocessing[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(tensor * std + mean, torch.tensor([1.0, 0, 0])[:, None, None].expand_as(tensor))


def test_load_frozen_draws_the_same_weights_for_a_seed_and_keeps_the_generator():
    source = ModelSource(model="test_resnet")
    before = torch.get_rng_state()
    first, same, other = (source.load_frozen(seed) for seed in (1, 1, 2))
    again = draw_weights(first.spec, 1)
    assert torch.equal(torch.get_rng_state(), before)
    image = torch.ones(1, 3, 32, 32)
    features = [loaded.model(image) for loaded in (first, same, other, again)]
    assert features[0].shape == (1, first.model.num_features)
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[3])
    assert not torch.equal(features[0], features[2])


def test_load_frozen_removes_the_classifier_of_a_checkpoint(checkpoint):
    model: Any = ModelSource(checkpoint).load_frozen().model
    assert model(torch.ones(1, 3, 32, 32)).shape == (1, model.num_features)


# Results


@pytest.mark.filterwarnings("ignore:test_resnet has random weights")
def test_classifier_result_equals_the_command_output(checkpoint, colour_folder, tmp_path, capsys):
    broken = colour_folder / "val" / "green" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    options = ImageOptions(root=str(colour_folder), batch_size=4, num_workers=0, on_error="skip")
    said: list[str] = []
    result = evaluate_classifier(visionattn.load_model(checkpoint), options, device="cpu", announce=said.append)
    argv = ["--data.root", colour_folder, "--data.batch_size", 4, "--data.num_workers", 0, "--data.on_error", "skip"]
    assert as_json(result.to_dict()) == written(tmp_path, "classify", "--checkpoint", checkpoint, *argv)
    assert result.num_unreadable == 1
    assert said[0] in capsys.readouterr().out


def test_classifier_result_agrees_with_a_plain_loop(checkpoint, colour_folder):
    model, spec, _ = loaded = visionattn.load_model(checkpoint)
    options = ImageOptions(root=str(colour_folder), batch_size=4, num_workers=0)
    right, counts = 0, torch.zeros(3, 3, dtype=torch.long)
    for batch in (each.to("cpu") for each in open_images(spec, options).val_dataloader()):
        with torch.no_grad():
            predicted = model(batch.image).argmax(1)
        right += int((predicted == batch.target).sum())
        for pair in zip(batch.target.tolist(), predicted.tolist(), strict=True):
            counts[pair] += 1
    result = evaluate_classifier(loaded, options, device="cpu", confusion_matrix=True)
    assert result.confusion_matrix is not None
    assert (result.num_images, result.top1, result.top5) == (9, right / 9, 1.0)
    assert torch.equal(result.confusion_matrix, counts)
    assert [row["num_predicted"] for row in result.per_class] == counts.sum(0).tolist()
    assert [row["class"] for row in result.per_class] == result.class_names == spec.class_names
    assert "confusion_matrix" not in result.to_dict()


def test_reid_result_equals_the_command_output_and_the_metrics(checkpoint, tmp_path):
    options = IdentityOptions(name="identities", num_workers=0)
    loaded = ModelSource(checkpoint).load()
    result = evaluate_reid(loaded, options, flip=True, rerank=True, device="cpu")
    argv = ["--data.name", "identities", "--data.num_workers", 0, "--flip", "--rerank"]
    assert as_json(result.to_dict()) == written(tmp_path, "reid", "--checkpoint", checkpoint, *argv)

    data = ReidData("identities", height=32, width=32, mean=[0.5] * 3, std=[0.5] * 3, num_workers=0)
    data.setup("validate")
    batches: list[Any] = [batch.to("cpu") for batch in (each.to("cpu") for each in data.val_dataloader())]
    ids, cameras = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("target", "camera"))
    model: Any = loaded.model

    def pooled(image: torch.Tensor) -> torch.Tensor:
        return model.forward_head(model.forward_features(image), pre_logits=True)

    with torch.no_grad():
        features = torch.cat([pooled(batch.image) + pooled(batch.image.flip(3)) for batch in batches])
    query, gallery = slice(data.num_query), slice(data.num_query, None)
    plain = evaluate_retrieval(
        features[query], features[gallery], ids[query], ids[gallery], cameras[query], cameras[gallery]
    )
    assert result.before_reranking is not None
    assert result.before_reranking["mAP"] == pytest.approx(plain["mAP"], abs=1e-5)
    assert result.features.features.shape == features.shape


def test_slots_result_equals_the_command_output_and_the_metric(slots_checkpoint, tmp_path):
    options = SceneOptions(limit=6, batch_size=4, num_workers=0)
    result = evaluate_slots(slots_checkpoint, options, device="cpu")
    argv = ["--data.limit", 6, "--data.batch_size", 4, "--data.num_workers", 0]
    assert as_json(result.to_dict()) == written(tmp_path, "discover", "--checkpoint", slots_checkpoint, *argv)

    data = SceneData("synthetic", image_size=16, limit=6, mean=[0.5] * 3, std=[0.5] * 3, num_workers=0)
    data.setup("validate")
    scores = []
    for batch in (each.to("cpu") for each in data.val_dataloader()):
        with torch.no_grad():
            found = result.network.slots(encode(result.network.encoder, batch.image))
        scores.append(foreground_ari(found.segments((16, 16)), batch.segments, batch.things))
    assert result.fg_ari == pytest.approx(float(torch.cat(scores).nanmean()), abs=1e-6)
    assert [row["segments"] for row in result.rows] == ["slots", "blocks", "random"]


def test_throughput_rows_equal_the_command_output(tmp_path, monkeypatch):
    def measure(name: str, conditions: Conditions) -> ThroughputRow:
        if name == "test_vit":
            return ThroughputRow(name, error="ValueError: no")
        return ThroughputRow(name, 160, 160, 0.5, 0.1, None, 100.0, 20.0, 5, float(conditions.batch_size))

    monkeypatch.setattr(module, "_measure_apart", measure)
    seen: list[int] = []
    rows = measure_throughput(
        ["test_vit", "test_resne*"], Conditions(batch_size=2), after_each=lambda x: seen.append(len(x))
    )
    output = tmp_path / "t.json"
    argv = ["throughput", "--models=test_vit,test_resne*", "--batch_size=2", "--device=cpu", f"--output={output}"]
    assert run(main, argv) == 1  # one model has failed
    assert [row.to_dict() for row in rows] == json.loads(output.read_text())["results"]
    assert rows[0].to_dict() == {"model": "test_vit", "error": "ValueError: no"}
    assert [ThroughputRow(**row.to_dict()) for row in rows] == rows
    assert seen == list(range(1, len(rows) + 1))


def test_progress_is_called_for_each_phase_until_all_is_done(checkpoint):
    steps: dict[str, list[Any]] = {}

    @contextmanager
    def show(description: str, unit: str = "steps") -> Any:
        steps[description] = []
        yield lambda done, total: steps[description].append((done, total))

    options = IdentityOptions(name="identities", num_workers=0, batch_size=64)
    result = evaluate_reid(visionattn.load_model(checkpoint), options, device="cpu", progress=show)
    assert list(steps) == ["evaluating test_resnet", "ranking"]
    assert steps["evaluating test_resnet"][-1] == (len(steps["evaluating test_resnet"]),) * 2
    assert steps["ranking"][-1] == (result.num_query, result.num_query)
