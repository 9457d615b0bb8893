"""Images that a run leaves."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from visionattn.training.callbacks import ExampleSheet, KernelSheet
from visionattn.training.examples import Examples
from visionattn.viz.reconstructions import save_reconstructions


def end_fit(folder: Path, hyper_kernels: Callable[[], Any] | None, is_global_zero: bool = True) -> None:
    model = nn.Linear(1, 1)
    if hyper_kernels is not None:
        model.hyper_kernels = hyper_kernels  # type: ignore[assignment]
    trainer: Any = SimpleNamespace(is_global_zero=is_global_zero)
    module: Any = SimpleNamespace(model=model)
    KernelSheet(folder).on_fit_end(trainer, module)


def test_kernel_sheet_draws_hyper_kernels(tmp_path: Path) -> None:
    kernel = torch.randn(4, 5, 5, requires_grad=True, dtype=torch.bfloat16)
    end_fit(tmp_path, lambda: {"blocks.0.global": 2 * kernel})
    with Image.open(tmp_path / "kernels.png") as image:
        assert image.size[0] > 100


def test_kernel_sheet_is_left_out_without_hyper_kernels(tmp_path: Path) -> None:
    end_fit(tmp_path, None)
    end_fit(tmp_path, lambda: {"global": torch.zeros(1, 3, 3)}, is_global_zero=False)
    assert not list(tmp_path.iterdir())


def test_kernel_sheet_reports_errors_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end_fit(tmp_path, lambda: {"global": torch.zeros(3)})
    assert "no image of the kernels: a kernel is [C, kH, kW]" in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.iterdir())


def test_example_sheet_reports_errors_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = Examples("reconstructions", save_reconstructions)
    examples.add(original=torch.zeros(0, 3, 4, 4))
    data = SimpleNamespace(preprocessing={"mean": (0.5,) * 3, "std": (0.5,) * 3})
    trainer: Any = SimpleNamespace(is_global_zero=True)
    module: Any = SimpleNamespace(examples=examples, data=data)
    ExampleSheet(tmp_path).on_fit_end(trainer, module)
    assert "no image of the reconstructions: rows are images" in " ".join(capsys.readouterr().out.split())
    for other in (SimpleNamespace(), SimpleNamespace(examples=Examples("slots", save_reconstructions))):
        without: Any = other
        ExampleSheet(tmp_path).on_fit_end(trainer, without)  # nothing to draw
    assert not list(tmp_path.iterdir())
