"""train.py as a user meets it: run folders, resuming, one-line errors."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

from visionattn.cli.errors import run
from visionattn.cli.train import main

REPOSITORY = Path(__file__).parents[2]
QUICK = [
    "--model.name=test_resnet",
    "--data.batch_size=8",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=2",
    "--trainer.accelerator=cpu",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.log_every_n_steps=1",
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def fit(*options: str) -> int:
    return run(main, ["fit", *QUICK, "--trainer.max_epochs=2", *options])


def steps(folder: str) -> list[int]:
    with (Path(folder) / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train_loss"]]


def test_run_folder_is_kept_and_the_next_run_gets_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--ema=0.9") == 0
    summary = capsys.readouterr().out
    run_folder = Path("runs/test_resnet/0")
    names = {path.name for path in run_folder.iterdir() if not path.name.startswith(".")}
    assert names == {"checkpoints", "config.yaml", "curve.png", "metrics.csv", "summary.json"}
    assert {path.name for path in (run_folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["model"]["name"] == "test_resnet"
    assert steps("runs/test_resnet/0") == list(range(8))
    assert "best val top-1" in summary
    assert f"python eval.py classify --checkpoint {run_folder}/checkpoints/best.ckpt --data.name digits" in summary
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    assert fit() == 0
    assert before == {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    assert Path("runs/test_resnet/1/metrics.csv").exists()


def test_summary_spans_all_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.max_epochs=1", "--run_name=x") == 0
    path = Path("runs/x/0/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["Stopwatch"]["seconds"] += 3600.0
    torch.save(checkpoint, path)
    capsys.readouterr()
    assert fit("--run_name=x", "--ckpt_path=last", "--seed_everything=0") == 0
    summary = json.loads(Path("runs/x/0/summary.json").read_text())
    assert (summary["model"], summary["epochs"], summary["steps"], summary["seed"]) == ("test_resnet", 2, 8, 0)
    assert f"best val top-1 {100 * summary['best']['val_top1']:.2f}%" in capsys.readouterr().out
    assert 3600 < summary["train_seconds"] < 7200, "over all resumes"
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert summary["command"].startswith("python train.py fit --")


def test_ckpt_path_last_resumes_in_the_same_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.max_epochs=1", "--run_name=x") == 0
    assert fit("--run_name=x", "--ckpt_path=last") == 0
    assert [path.name for path in Path("runs/x").iterdir()] == ["0"]
    assert steps("runs/x/0") == list(range(8))
    assert {path.name for path in Path("runs/x/0").glob("*.yaml")} == {"config.yaml", "config-1.yaml"}
    assert torch.load("runs/x/0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 8


def test_ckpt_path_last_without_a_run_starts_from_scratch(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--ckpt_path=last", "--trainer.max_epochs=1") == 0
    assert "training starts from scratch" in capsys.readouterr().out


def test_resumed_run_needs_no_initial_weights(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "initial.pth")
    assert fit("--model.checkpoint_path=initial.pth", "--trainer.max_epochs=1") == 0
    (tmp_path / "initial.pth").unlink()
    assert fit("--model.checkpoint_path=initial.pth", "--ckpt_path=last") == 0
    assert fit("--model.checkpoint_path=initial.pth", "--run_name=another") == 1


def test_damaged_checkpoint_never_hides_a_good_one() -> None:
    assert fit("--trainer.max_epochs=1") == 0
    folder = Path("runs/test_resnet/0/checkpoints")
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt.tmp").write_bytes(whole[:1000])  # killed in the middle of writing
    assert fit("--ckpt_path=last") == 0
    (folder / "last.ckpt").write_bytes(whole[:1000])  # lost by the disk
    assert fit("--ckpt_path=last", "--trainer.max_epochs=3") == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 12


def test_metrics_rows_after_the_checkpoint_are_kept_aside() -> None:
    assert fit("--trainer.max_epochs=1") == 0
    metrics = Path("runs/test_resnet/0/metrics.csv")
    lines = metrics.read_text().splitlines()
    columns = lines[0].split(",")
    later = ["7" if column in ("step", "train_loss") else "" for column in columns]
    metrics.write_text("\n".join([*lines, ",".join(later), "1,2"]) + "\n")
    assert fit("--ckpt_path=last") == 0
    assert steps("runs/test_resnet/0") == list(range(8))
    assert ",".join(later) in Path("runs/test_resnet/0/metrics-interrupted.csv").read_text()


def test_predict_names_the_classes_of_packaged_weights(
    colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ("--model.name=resnet_pico", "--model.pretrained=true", "--data.img_size=32", "--data.num_workers=0")
    assert run(main, ["predict", *model, f"--data.root={colour_folder / 'val'}", "--trainer.accelerator=cpu"]) == 0
    with Path("predictions.csv").open() as file:
        found = {row["class"] for row in csv.DictReader(file)}
    assert found <= set(timm.get_pretrained_cfg("resnet_pico").label_names)


def test_validate_and_predict_take_model_and_preprocessing_from_the_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit("--data.img_size=48", "--trainer.max_epochs=1") == 0
    capsys.readouterr()
    for _ in range(2):
        assert run(main, ["validate", "--ckpt_path=best", "--run_name=test_resnet", "--trainer.accelerator=cpu"]) == 0
        assert "val_top1" in capsys.readouterr().out
    Path("images").mkdir()
    for number in range(3):
        Image.new("RGB", (30, 20)).save(f"images/{number}.png")
    checkpoint = "runs/test_resnet/0/checkpoints/best.ckpt"
    assert run(main, ["predict", f"--ckpt_path={checkpoint}", "--data.root=images", "--trainer.accelerator=cpu"]) == 0
    with Path("predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"images/{number}.png" for number in range(3)]
    assert all(row["class"].isdigit() and 0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_logger_tensorboard_writes_to_the_run_folder() -> None:
    pytest.importorskip("tensorboard")
    assert fit("--logger=tensorboard", "--trainer.max_epochs=1") == 0
    assert list(Path("runs/test_resnet/0").rglob("events.out*"))
    assert steps("runs/test_resnet/0")


def test_missing_logger_package_is_an_error_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("visionattn.training.loggers.find_spec", lambda name: None)
    assert fit("--logger=tensorboard") == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not Path("runs/test_resnet").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.root=absent"], "no such data folder: absent"),
        (["--model.name=nat_tinny"], "unknown model 'nat_tinny': did you mean nat_tiny"),
        (["--model.nam=x"], "unknown option --model.nam; did you mean --model.name"),
        (["--trainer.max_epoch=3"], "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs"),
        (["--data.batch_size=many"], "data.batch_size"),
        (["--config=bad.yaml"], "model.learning_rate"),
        (["--config=absent.yaml"], "absent.yaml"),
        (["--model.num_classes=4"], "the data have 10 classes, the head only 4"),
        (["--ckpt_path=text.ckpt"], "text.ckpt is not a checkpoint"),
        (["--ckpt_path=absent.ckpt"], "no checkpoint at absent.ckpt"),
        (["--model.opt=adamm"], "unknown optimizer 'adamm'"),
        (["--model.opt_kwargs={bets: 1}"], "bets"),
        (["--data.auto_augment=rend"], "auto_augment"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_errors_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text("model:\n  learning_rate: 1\n")
    Path("text.ckpt").write_text("hello")
    assert fit(*options) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(Path().glob("runs/*/*"))


def test_checkpoint_of_another_architecture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.max_epochs=1") == 0
    checkpoint = "runs/test_resnet/0/checkpoints/last.ckpt"
    assert fit("--model.name=test_vit", f"--ckpt_path={checkpoint}") == 1
    assert "holds another architecture: model 'test_resnet', here 'test_vit'" in capsys.readouterr().err


def test_sigterm_saves_and_prints_how_to_resume() -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), "fit", *QUICK, "--trainer.limit_train_batches=100"]
    command += ["--data.num_workers=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert "test_resnet" in process.stdout.readline()  # training begins
        os.killpg(process.pid, signal.SIGTERM)  # loader workers, too, as schedulers do
        output, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert error.strip().splitlines() == ["error: terminated by SIGTERM"]
    assert "--ckpt_path runs/test_resnet/0/checkpoints/last.ckpt" in output
    step = torch.load("runs/test_resnet/0/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step > 0
