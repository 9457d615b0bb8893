"""Probing sessions in Python: the rows of the command, and the model that stays as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import visionattn
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.errors import UserError
from visionattn.evaluation.source import LoadedModel
from visionattn.probing import FeatureOptions, HeadTraining, ProbingData, ProbingSession
from visionattn.probing.requests import HeadRequest, request_heads

MODEL = "vit_nano_patch4_32.cifar10"


@pytest.fixture
def loaded() -> LoadedModel:
    return visionattn.load_model(MODEL, pretrained=True)


def rows(results: Any) -> str:
    """Rows as the JSON file has them, without times."""
    return json.dumps([{**row, "seconds": 0, **shortened(row)} for row in results])


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    return {"draws": [{**draw, "seconds": 0} for draw in row["draws"]]} if "draws" in row else {}


def make_session(
    loaded: LoadedModel, root: Path, cache: Path, layers: Any = ("last",), **training: Any
) -> ProbingSession:
    return ProbingSession(
        loaded,
        ProbingData(root=str(root), num_workers=0),
        FeatureOptions(layers=list(layers), cache=cache),
        HeadTraining(epochs=2, batch_size=4, lrs=[1e-3, 1e-2], **training),
        device="cpu",
    )


@pytest.mark.parametrize(
    ("layers", "shots"), [(["last"], None), ([0, "last"], None), (["last"], [1, 2])], ids=["last", "two", "shots"]
)
def test_session_gives_the_rows_of_the_command(tmp_path, colour_folder, loaded, layers, shots):
    heads = ["linear", "ep_8", "knn", "clip", "ridge"]
    session = make_session(loaded, colour_folder, tmp_path / "a", layers, shots=shots, repeats=2)
    results = session.run(heads, {"ep_8": {"d_out": 2}})
    argv = ["--model", MODEL, "--pretrained", "--heads", ",".join(heads), "--head_options", '{"ep_8": {"d_out": 2}}']
    argv += ["--data.root", str(colour_folder), "--data.num_workers", "0", "--device", "cpu"]
    argv += ["--features.layers", ",".join(map(str, layers)), "--features.cache", str(tmp_path / "b")]
    argv += ["--training.epochs", "2", "--training.batch_size", "4", "--training.lrs", "1e-3,1e-2"]
    argv += ["--training.shots", ",".join(map(str, shots))] if shots else []
    argv += ["--training.repeats", "2", "--output", str(tmp_path / "r.json")]
    assert run(main, ["probe", *argv]) == 0
    content = json.loads((tmp_path / "r.json").read_text())
    assert rows(result.to_dict() for result in results) == rows(content["results"])
    described = json.dumps({**session.describe(), "extraction_seconds": 0})
    assert described == json.dumps({**content["models"][0], "extraction_seconds": 0})
    for result, row in zip(results, content["results"], strict=True):
        assert (result.name, result.layers) == (row["head"], row["layers"])
        assert (result.top1, result.top5) == (row["top1"], row["top5"])
        assert (result.head is None) == (result.name == "knn" or shots is not None)


def test_loaded_model_keeps_its_classifier(tmp_path, colour_folder, loaded):
    images = torch.rand(2, 3, 32, 32)
    logits = loaded.model(images)
    session = make_session(loaded, colour_folder, tmp_path)
    session.run(["knn"])
    assert torch.equal(loaded.model(images), logits)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_second_session_finds_features_and_trainings(tmp_path, colour_folder, loaded, monkeypatch):
    first = make_session(loaded, colour_folder, tmp_path).run(["ep_4", "knn"])
    session = make_session(loaded, colour_folder, tmp_path)
    monkeypatch.setattr(type(session.backbone), "forward", lambda *_: pytest.fail("extracted"))
    again = session.run(["ep_4", "knn"])
    assert rows(result.to_dict() for result in again) == rows(result.to_dict() for result in first)


def test_exported_head_classifies_as_its_result_says(tmp_path, colour_folder, loaded):
    session = make_session(loaded, colour_folder, tmp_path)
    (result, nearest) = session.run(["gap", "knn"])
    classifier = visionattn.load_probe(session.export(result, tmp_path / "heads"))
    assert classifier.class_names == session.class_names == ["blue", "green", "red"]
    with pytest.raises(ValueError, match="knn has no head to export"):
        session.export(nearest, tmp_path / "heads")


def test_views_of_layers_of_different_grids_are_refused_by_the_plan(tmp_path, colour_folder):
    session = ProbingSession(
        visionattn.load_model("nat_pico.cifar10"),
        ProbingData(root=str(colour_folder), num_workers=0),
        FeatureOptions(layers=[0, 2], cache=tmp_path, views=2),
        device="cpu",
    )
    with pytest.raises(ValueError, match="cannot be put side by side"):
        session.plan(request_heads(["linear"]))


def test_requests_are_checked_once_and_report_their_needs():
    requests = request_heads(["linear", "ep_8", "knn", "linear", HeadRequest("clip")], {"ep_8": {"d_out": 2}})
    assert [request.name for request in requests] == ["linear", "ep_8", "knn", "clip"]
    assert [request.needs_tokens for request in requests] == [False, True, False, True]
    assert [request.is_fitted for request in requests] == [False, False, True, False]
    for heads, options, says in (
        ([], {}, "heads name nothing"),
        (["rigde"], {}, r"no head is named 'rigde'; did you mean ridge\?"),
        (["knn"], {"knn": {"k": 1}}, "knn takes no options, got k"),
        (["knn"], {"aim": {}}, "is for none of the heads knn"),
    ):
        with pytest.raises(UserError, match=says):
            request_heads(heads, options)
