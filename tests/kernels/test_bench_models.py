"""The benchmark of whole models: rows of both revisions, what is not timed, lower bounds, profiles and tables."""

import csv
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from kernels.bench import model_worker

QUICK = ["--quick", "--threads", "1", "--repeats", "1", "--models", "resnet_pico"]
BOTH = [*QUICK, "--earlier", sys.executable]


class WorkerHere:
    """A worker in this process; of the earlier revision if it is given a spoilt or no model."""

    spoilt = 1.0
    known = True

    def __init__(self, revision, network, batch, device, threads):
        self.network, self.earlier = network, revision.folder is None
        self.worker = model_worker.Worker(network, batch, device, threads)
        facts = {"folder": "no/such/folder", "visionattn": "0.0.1", "timm": "1.0"}
        self.facts = facts if self.known or not self.earlier else None

    def ask(self, command, *arguments):
        answer = getattr(self.worker, command)(*json.loads(json.dumps(arguments)))
        if command == "load":
            next(self.worker.model.parameters()).data.mul_(self.spoilt)
        return json.loads(json.dumps(answer))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def here(bench, monkeypatch):
    """Run workers in this process."""
    monkeypatch.setattr(bench.models, "ModelProcess", WorkerHere)
    return monkeypatch


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_rows_hold_both_revisions(bench, here, tmp_path, capsys):
    output = tmp_path / "models-cpu.csv"
    assert bench.models.main([*BOTH, "--curve", "3", "--profile", "--output", str(output)]) == 0
    rows = read(output)
    assert list(rows[0]) == ["device", "hardware", "threads", *bench.models.COLUMNS]
    found = [(row["direction"], row["contender"], row["network"]) for row in rows]
    contenders = ("visionattn", "earlier")
    assert found == [(d, c, "resnet_pico") for d in ("inference", "training") for c in contenders]
    for row in rows:
        assert float(row["images_per_second"]) == pytest.approx(2e3 / float(row["median_ms"]), rel=1e-2)
        assert 0 < float(row["fraction_of_floor"]) < 1.5
        assert float(row["peak_mb"]) > 0
    shares = [float(row["share"]) for row in read(tmp_path / "models-profile-cpu.csv") if row["contender"] == "earlier"]
    assert sum(shares) == pytest.approx(1, abs=1e-2)
    losses = read(tmp_path / "models-curves-cpu.csv")
    assert [row["step"] for row in losses] == ["0", "1", "2"]
    assert all(row["loss"] == row["earlier_loss"] for row in losses)
    command = json.loads((tmp_path / "models-cpu.json").read_text())["command"]
    assert sys.executable not in command
    said = capsys.readouterr().out
    assert "gradients of both revisions differ by at most 0 " in said
    assert "training: the earlier revision takes" in said


def test_revision_with_other_gradients_is_not_timed(bench, here, tmp_path, capsys):
    here.setattr(WorkerHere, "spoilt", 1.01)
    output = tmp_path / "models-cpu.csv"
    assert bench.models.main([*BOTH, "--output", str(output)]) == 1
    assert {row["contender"] for row in read(output)} == {"visionattn"}
    assert "the earlier revision is not timed" in capsys.readouterr().err


def test_model_unknown_to_the_earlier_revision_has_no_row_of_it(bench, here, tmp_path):
    here.setattr(WorkerHere, "known", False)
    here.setattr(bench.models, "PEERS", {"resnet_pico": ("test_resnet",)})
    output = tmp_path / "models-cpu.csv"
    assert bench.models.main([*BOTH, "--output", str(output)]) == 0
    found = [(row["contender"], row["network"]) for row in read(output)]
    assert found == 2 * [("visionattn", "resnet_pico"), ("timm", "test_resnet")]
    text = bench.table.render(output)
    assert "earlier" not in text
    assert "| resnet_pico | test_resnet | training |" in text


def test_gradients_that_vanish_are_compared_with_the_others(bench):
    expected = {"large": torch.tensor([1.0, -2.0]), "zero": torch.tensor([1e-9])}
    assert bench.models.disagreement(expected, expected) == (0.0, "large")
    error, where = bench.models.disagreement({**expected, "large": torch.tensor([1.0, -2.002])}, expected)
    assert (where, error) == ("large", pytest.approx(1e-3, rel=1e-3))
    assert bench.models.disagreement({**expected, "zero": torch.tensor([2e-9])}, expected)[0] < 1e-4
    assert bench.models.disagreement({"large": expected["large"]}, expected) == (float("inf"), "zero")
    error, where = bench.models.disagreement({**expected, "large": torch.tensor([torch.nan, 1])}, expected)
    assert not error <= 1e-4
    assert where == "large"


def test_cost_of_a_training_step(bench):
    inference, training = bench.model_costs.count_costs("nat_pico", 2, 4).values()
    weights, images = 4 * inference.parameters, 4 * 2 * 3 * 32 * 32
    assert inference.bytes == weights + images
    assert training.bytes == 8 * weights + images
    attention = 17_645_568  # both products, for each query and each of its keys
    assert training.flops == 3 * inference.flops + attention / 2
    rates = bench.measure.Rates(1e9, 1e9)
    assert training.floor_ms(rates) == pytest.approx(training.flops / 1e6)
    assert training.floor_ms(rates, kept=1e12) == pytest.approx((training.bytes + 2e12) / 1e6)


def test_tensors_kept_for_backward_are_counted_once():
    worker = model_worker.Worker("resnet_pico", 2, "cpu", 1)
    worker.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5), torch.nn.Sigmoid())
    worker.model.append(torch.nn.Linear(5, 10))
    # The result of the sigmoid, which two layers keep, and that of log_softmax; and what the loss keeps of one number.
    assert worker.kept("float32") - 4 * (2 * 5 + 2 * 10) in range(64)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["aten::addmm", "aten::linear", "forward"], "products, forward"),
        (["aten::convolution_backward", "backward"], "products, backward"),
        (["aten::copy_", "visionattn::native_attention", "forward"], "attention, forward"),
        (["aten::_scaled_dot_product_flash_attention_for_cpu_backward", "backward"], "attention, backward"),
        (["visionattn::standardize_columns", "forward"], "norms"),
        (["aten::gelu_backward", "backward"], "activations"),
        (["aten::mul", "optimizer"], "optimizer"),
        (["aten::_to_copy", "forward"], "copies"),
        (["aten::add_", "backward"], "elementwise"),
        (["autograd::engine::evaluate_function: AddmmBackward0", "backward"], "rest"),
        (["forward"], "rest"),
    ],
)
def test_kinds_of_profiled_operations(names, kind):
    event = None
    for name in reversed(names):
        event = SimpleNamespace(name=name, cpu_parent=event)
    assert model_worker.kind_of(event) == kind


def test_table_has_the_geometric_mean_and_work_of_peers(bench):
    common = {"batch": "4", "direction": "training", "fraction_of_floor": "0.25", "peak_mb": "9", "version": "0123abc"}

    def row(model, contender, network, ratio, gmacs):
        speed = {"images_per_second": str(100 / ratio), "ratio_to_ours": str(ratio), "gmacs": gmacs}
        return {**common, "model": model, "contender": contender, "network": network, **speed}

    rows = [row(model, "visionattn", model, 1, "2") for model in ("a", "b", "c")]
    rows += [row("a", "earlier", "a", 2, "2"), row("b", "earlier", "b", 8, "2"), row("a", "timm", "x", 1.5, "3")]
    first, second = bench.table.models_tables(rows).split("\n\n")
    assert first.splitlines()[2:] == [
        "| a B4 | training | 100 | 50 | 2.00× | 2 | 25% | 9 | 9 |",
        "| b B4 | training | 100 | 12.5 | 8.00× | 2 | 25% | 9 | 9 |",
        "| c B4 | training | 100 | – | – | 2 | 25% | 9 | – |",
        "| geometric mean | training |  |  | 4.00× |  |  |  |  |",
    ]
    assert "| 0123abc (img/s) |" in first
    assert second.splitlines()[2:] == ["| a | x | training | 100 | 66.7 | 2 | 3 | 1.50× | 1.00× |"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nat_tinny"], "did you mean 'nat_tiny'"),
        (["--batch", "0"], "--batch must be at least 1; got 0"),
        (["--curve", "-1"], "--curve must be at least 0; got -1"),
        (["--curve", "5"], "--curve needs the Python of an earlier revision: pass --earlier as well"),
        (["--checkout", "."], "--checkout needs the Python of an earlier revision: pass --earlier as well"),
        (["--earlier", "no/such/python"], "--earlier must be the python executable of an environment; got no/such"),
        (["--earlier", sys.executable, "--checkout", "no/such"], "--checkout must be a folder that holds visionattn"),
    ],
)
def test_bad_options_of_models_are_one_line(bench, capsys, arguments, message):
    assert bench.script.run(bench.models.main, ["--quick", *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_processes_answer_and_say_why_they_end(bench):
    start = bench.model_process.ModelProcess
    with start(bench.model_process.Revision(), "resnet_pico", 2, "cpu", 1) as process:
        assert process.facts["timm"]
        assert process.ask("time", "training", "float32") > 0
        with pytest.raises(ValueError, match="resnet_pico: 'Worker' object has no attribute 'tyme'"):
            process.ask("tyme")
        process._process.kill()
        with pytest.raises(ValueError, match="the process of resnet_pico ended"):
            process.ask("time", "training", "float32")
    with start(bench.model_process.Revision(), "no_such_model", 2, "cpu", 1) as process:
        assert process.facts is None
