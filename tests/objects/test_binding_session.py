"""Sessions in Python: the same results as those of eval.py binding, and errors."""

import json
from dataclasses import replace
from typing import Any

import pytest

import visionattn
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.evaluation import LoadedModel, ModelSource
from visionattn.objects import (
    BindingData,
    BindingResults,
    BindingSession,
    Experiments,
    Interventions,
    ProbeTraining,
    best_layer,
    click_objects,
)
from visionattn.probing.rows import grouped, mean_and_deviation

KWARGS = {"img_size": 32, "patch_size": 8, "depth": 3}
DATA = BindingData(length=8, val_length=4, batch_size=4, num_workers=0)
TRAINING = ProbeTraining(epochs=2, rank=4)
OPTIONS = ["--data.length", "8", "--data.val_length", "4", "--data.batch_size", "4", "--data.num_workers", "0"]
OPTIONS += ["--training.epochs", "2", "--training.rank", "4", "--device", "cpu"]
PROBES = ("quadratic", "cosine", "class", "identity")


def load(seed: int = 0, **kwargs: Any) -> LoadedModel:
    return ModelSource(model="test_vit", model_kwargs={**KWARGS, **kwargs}).load_frozen(seed)


@pytest.mark.filterwarnings("ignore:test_vit has random weights")
def test_session_gives_the_json_of_the_command(tmp_path):
    interventions = Interventions(layers=[0, 1], shuffle=[0.5], inject=[1.0])
    found = BindingResults()
    for seed in (0, 1):
        training = replace(TRAINING, seed=seed)
        session = BindingSession(load(seed), data=DATA, training=training, probes=PROBES, device="cpu")
        experiments = Experiments(session, interventions)
        found.extend(session.run())
        found.extend(experiments.run())
    file = tmp_path / "r.json"
    words = ["--model", "test_vit", "--model_kwargs", json.dumps(KWARGS), "--probes", ",".join(PROBES), "--seeds", "2"]
    words += ["--interventions.layers", "0,1", "--interventions.shuffle", "0.5", "--interventions.inject", "1"]
    assert run(main, ["binding", *OPTIONS, *words, "--output", str(file)]) == 0

    def text(results: dict[str, Any]) -> str:
        for model in results["models"]:
            del model["training_seconds"]
        return json.dumps({key: results[key] for key in ("results", "models", "interventions", "attention")}, indent=2)

    written = json.loads(file.read_text())
    assert text(found.to_dict()) == text(written)
    row, first = found.rows[0], written["results"][0]
    assert (row.layer, row.probe, row.accuracy) == (first["layer"], first["probe"], first["accuracy"])
    assert row.label == "test_vit (random)"


@pytest.mark.filterwarnings("ignore:test_vit has random weights")
def test_session_probes_a_checkpoint_and_maps_clicks(checkpoint):
    loaded = visionattn.load_model(checkpoint)
    session = BindingSession(loaded, data=DATA, training=TRAINING, probes=["linear"], layers=[0, -2], device="cpu")
    assert session.preparation.endswith(f"as {checkpoint} wants them")
    rows = session.run().rows
    assert [(row.layer, row.depth, row.weights) for row in rows] == [(0, 0.2, "average"), (3, 0.8, "average")]
    clicks, captions = click_objects(session, "linear", best_layer(rows, "linear"), 2)
    assert [len(click.maps) for click in clicks] == [2, 2]
    assert sorted(caption.removesuffix(", best") for caption in captions) == ["layer 0", "layer 3"]


@pytest.mark.filterwarnings("ignore:test_vit has random weights")
def test_session_refuses_impossible_requests():
    with pytest.raises(ValueError, match="no probe is named 'cubic'"):
        BindingSession(load(), data=DATA, probes=["cubic"], device="cpu")
    with pytest.raises(ValueError, match="test_vit takes images of 1 channels"):
        BindingSession(load(in_chans=1), data=DATA, device="cpu")
    session = BindingSession(load(), data=DATA, training=TRAINING, probes=["quadratic"], device="cpu")
    with pytest.raises(ValueError, match="needs the probes class, identity"):
        Experiments(session, Interventions(layers=[0]))


def test_statistics_leave_unknown_values_out():
    assert mean_and_deviation([None]) == (None, None)
    assert mean_and_deviation([0.5, None]) == (0.5, None)
    assert mean_and_deviation([0.25, 0.75]) == (0.5, pytest.approx(0.125**0.5))
    assert grouped("abca", lambda letter: letter == "a") == [(True, ["a", "a"]), (False, ["b", "c"])]
