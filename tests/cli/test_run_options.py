"""Plain options of fit: the search for the learning rate, early stopping with several best checkpoints, loggers."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import visionattn
from visionattn.errors import UsageError
from visionattn.training.loggers import RunWandbLogger, create_loggers
from visionattn.training.rate_finder import RateSearch
from visionattn.training.runs import RunFolder

QUICK: dict[str, Any] = {
    "model": {"name": "test_vit", "model_kwargs": {"img_size": 16}},
    "data": {"img_size": 16, "batch_size": 8, "num_workers": 0},
    "trainer": {
        "accelerator": "cpu",
        "limit_train_batches": 2,
        "limit_val_batches": 2,
        "max_epochs": 8,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    },
    "run_name": "x",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def fit(**options: Any) -> visionattn.FitResult:
    return visionattn.fit(QUICK, {name.replace("__", "."): value for name, value in options.items()})


def state(result: visionattn.FitResult) -> dict[str, Any]:
    assert result.last_checkpoint is not None
    return torch.load(result.last_checkpoint, weights_only=True)


# Search for the learning rate


def test_training_after_a_search_equals_one_with_that_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionattn.training.rate_finder.UPDATES", 50)
    options = {"trainer__max_epochs": 1, "model__layer_decay": 0.5}
    found = fit(find_lr=True, model__lr_base=0.1, **options)
    out = capsys.readouterr().out
    rate = yaml.safe_load((found.folder / "config.yaml").read_text())["model"]["lr"]
    assert f"learning rate {rate:g}: there the loss fell fastest (find_lr.png), in place of --model.lr_base 0.1" in out
    assert (found.folder / "find_lr.png").is_file()
    assert {path.name for path in found.folder.glob(".*")} == {".lock"}
    given = fit(model__lr=rate, **options)
    for name, value in state(given)["state_dict"].items():
        assert torch.equal(value, state(found)["state_dict"][name])


def test_resumed_run_keeps_the_rate_that_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    search = RateSearch([1e-3] * 30, torch.linspace(1, 0, 30))
    monkeypatch.setattr("visionattn.cli.training.search_rate", lambda *_: search)
    first = fit(find_lr=True, trainer__max_epochs=1)
    monkeypatch.delattr("visionattn.cli.training.search_rate")  # it would fail
    second = fit(find_lr=True, ckpt_path="last", trainer__max_epochs=2)
    assert (second.folder, second.epochs) == (first.folder, 2)
    assert state(second)["hyper_parameters"]["lr"] == 1e-3


def test_training_stops_early_and_keeps_several_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    """With a rate of 0 no validation is better than the first."""
    result = fit(model__lr=0, early_stopping=2, save_top_k=2)
    out = capsys.readouterr().out
    assert result.epochs == 3
    assert f"stopped early: val top-1 {result.score:.2%} has not improved in 2 validations\nbest val top-1" in out
    assert "checkpoint: runs/x/0/checkpoints/best.ckpt" in out
    names = {path.name for path in (result.folder / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", *(f"step{step}-val_top1-{result.score:.4f}.ckpt" for step in (2, 4))}


# Loggers, with packages that keep what they are given


class Runs:
    """Runs of a service by their identity: options and metrics."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}

    def begin(self, identity: str) -> dict[str, Any]:
        return self.runs.setdefault(identity, {"params": {}, "steps": [], "ended": []})


def install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="here")
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Runs:
    service = Runs()

    class Client:
        def __init__(self, uri: str) -> None:
            assert uri == "sqlite:///mlflow.db"

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(lifecycle_stage="active", experiment_id=name)

        def create_run(self, experiment_id: str, tags: dict[str, str]) -> Any:
            assert (experiment_id, tags) == ("visionattn", {"name": "x/0"})
            service.begin("run-1")
            return SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

        def get_run(self, run_id: str) -> Any:
            assert run_id in service.runs
            return SimpleNamespace(info=SimpleNamespace(experiment_id="visionattn"))

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            held = service.runs[run_id]
            for param in params:
                assert held["params"].setdefault(param.key, param.value) == param.value, "MLflow refuses changes"
            held["steps"] += [metric.step for metric in metrics if metric.key == "train_loss"]

        def set_terminated(self, run_id: str, status: str) -> None:
            service.runs[run_id]["ended"].append(status)

    context = SimpleNamespace(resolve_tags=lambda tags: tags)
    install(monkeypatch, "mlflow", get_tracking_uri=lambda: "sqlite:///mlflow.db", set_tracking_uri=lambda uri: None)
    install(monkeypatch, "mlflow.tracking", MlflowClient=Client, context=context)
    install(monkeypatch, "mlflow.tracking.context", resolve_tags=context.resolve_tags)
    install(monkeypatch, "mlflow.entities", Param=SimpleNamespace, Metric=SimpleNamespace)
    install(monkeypatch, "mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="name")
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    return service


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Runs:
    service = Runs()

    def begin(project: str, name: str, resume: str) -> Any:
        assert project == "visionattn"
        assert (name in service.runs) == (resume == "allow")
        held = service.begin(name)
        log = lambda metrics, step: held["steps"].append(step) if "train_loss" in metrics else None  # noqa: E731
        return SimpleNamespace(config=held["params"], log=log)

    def finish() -> None:
        list(service.runs.values())[-1]["ended"].append("FINISHED")

    install(monkeypatch, "trackio", init=begin, finish=finish)
    return service


@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_logger_continues_the_run_of_a_resumed_training(
    name: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    service: Runs = request.getfixturevalue(name)
    folder = RunFolder(tmp_path / "x" / "0")
    folder.path.mkdir(parents=True)
    for resume_step, rate in ((None, 0.1), (2, 0.2)):
        _, logger = create_loggers(folder, name, resume_step)
        logger.log_hyperparams({"name": "test_vit", "lr": rate})
        for step in (2, 3) if resume_step else (0, 1):
            logger.log_metrics({"train_loss": 1.0}, step)
        logger.finalize("success")
    (held,) = service.runs.values()
    assert held["steps"] == [0, 1, 2, 3]
    assert held["ended"] == ["FINISHED", "FINISHED"]
    assert held["params"]["name"] == "test_vit"


@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_missing_logger_package_is_named_before_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ModuleSpec(name, None, is_package=True)  # a folder of that name in the working directory
    monkeypatch.setattr("visionattn.training.loggers.find_spec", lambda module: folder)
    with pytest.raises(UsageError, match=f"--logger {name} needs a package that is not installed: pip install {name}"):
        fit(logger=name)
    assert not Path("runs/x").exists()


def test_wandb_run_ends_with_its_training(tmp_path: Path) -> None:
    logger, codes = RunWandbLogger("x", save_dir=tmp_path, offline=True), []
    logger._experiment = SimpleNamespace(finish=lambda exit_code: codes.append(exit_code))
    logger.finalize("success")
    logger.finalize("failed")
    assert codes == [0, 1]
