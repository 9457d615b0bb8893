"""Learning curves from the CSV of Lightning."""

import csv
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from visionattn.viz import curves
from visionattn.viz.curves import save_learning_curve


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures instead of saving them."""
    figures = []

    def save(figure, path):
        figures.append(figure)
        return original(figure, path)

    original = curves.save_figure
    monkeypatch.setattr(curves, "save_figure", save)
    return figures


def write_metrics(folder: Path, rows: list[dict[str, float]]) -> Path:
    logger = CSVLogger(folder, name="", version="")
    for row in rows:
        logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))
    logger.save()
    return Path(logger.log_dir) / "metrics.csv"


def two_epochs_of_ten_steps() -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for epoch in (0, 1):
        for step in (4, 9):
            rows.append({"step": 10 * epoch + step, "epoch": epoch, "train_loss": 2.0 - epoch - step / 10})
            rows.append({"step": 10 * epoch + step, "lr-AdamW": 1e-3 / (1 + epoch)})
        val = {"val_loss": 1.5 - epoch, "val_top1": 0.6 + 0.2 * epoch, "val_top5": 0.9}
        rows.append({"step": 10 * epoch + 9, "epoch": epoch, **val})
    return rows


def test_panels_show_their_columns_over_epochs(tmp_path, drawn):
    metrics = write_metrics(tmp_path, two_epochs_of_ten_steps())
    path = save_learning_curve(metrics, tmp_path / "new" / "curve.png")
    with Image.open(path) as image:
        assert image.size[0] > 1000
    losses, accuracies, rates = drawn[0].axes
    assert [axes.get_xlabel() for axes in drawn[0].axes] == ["epoch"] * 3
    train, validation = losses.lines
    assert list(train.get_xdata()) == [0.5, 1.0, 1.5, 2.0]
    assert list(train.get_ydata()) == pytest.approx([1.6, 1.1, 0.6, 0.1])
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([1.0, 2.0], [1.5, 0.5])
    assert list(accuracies.lines[0].get_ydata()) == pytest.approx([60, 80])
    assert "80.00% at epoch 2" in accuracies.get_title()
    assert accuracies.get_ylabel() == "%"
    assert list(rates.lines[0].get_ydata()) == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])


def test_retrieval_measures_use_the_accuracy_panel(tmp_path, drawn):
    rows = [{"step": 9, "epoch": 0, "val_mAP": 0.2, "val_rank1": 0.5}, {"step": 19, "epoch": 1, "val_mAP": 0.3}]
    save_learning_curve(write_metrics(tmp_path, rows), tmp_path / "curve.png")
    (axes,) = drawn[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {
        "mAP": pytest.approx([20, 30]),
        "rank-1": pytest.approx([50]),
    }
    assert "mAP 30.00% at epoch 2" in axes.get_title()


def test_panels_without_columns_are_left_out(tmp_path, drawn):
    rows = [{name: row[name] for name in row if name != "lr-AdamW"} for row in two_epochs_of_ten_steps()]
    rows = [{name: row[name] for name in row if not name.startswith("val_")} for row in rows if len(row) > 1]
    save_learning_curve(write_metrics(tmp_path, rows), tmp_path / "curve.png")
    assert [axes.get_title() for axes in drawn[0].axes] == ["Loss"]


def test_parts_of_the_training_loss_have_a_panel(tmp_path, drawn):
    rows = [
        {"step": step, "epoch": 0, "train_loss": 2.5, "train_loss_ce": 2.0, "train_loss_slow": 0.5} for step in range(3)
    ]
    save_learning_curve(write_metrics(tmp_path, rows), tmp_path / "curve.png")
    whole, parts = drawn[0].axes
    assert list(whole.lines[0].get_ydata()) == [2.5] * 3
    assert {line.get_label(): line.get_ydata()[0] for line in parts.lines} == {"ce": 2.0, "slow": 0.5}


def test_long_runs_are_smoothed_and_nan_is_left_out(tmp_path, drawn):
    rows = [{"step": step, "epoch": step // 100, "train_loss": 5.0 - step / 200 + step % 2} for step in range(800)]
    rows[400]["train_loss"] = float("nan")
    save_learning_curve(write_metrics(tmp_path, rows), tmp_path / "curve.png")
    raw, smooth = drawn[0].axes[0].lines
    assert len(raw.get_xdata()) == 799
    assert max(abs(a - b) for a, b in zip(smooth.get_ydata(), list(smooth.get_ydata())[1:], strict=False)) < 0.1


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no metrics at .*gone\.csv"):
        save_learning_curve(tmp_path / "gone.csv", tmp_path / "curve.png")
    with (tmp_path / "other.csv").open("w") as file:
        csv.writer(file).writerows([["epoch", "step", "speed"], [0, 1, 3]])
    with pytest.raises(ValueError, match=r"other\.csv has no losses"):
        save_learning_curve(tmp_path / "other.csv", tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
