"""eval.py kernels, in this process."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.evaluation import LoadedModel, ModelSource

KERNELS = {"blocks.0.global": torch.tensor([[[1.0, -3.0]], [[0.0, 2.0]]]), "blocks.0.channel": torch.ones(2, 1, 1)}


class HyperResNet(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def hyper_kernels(self) -> dict[str, torch.Tensor]:
        return KERNELS


def kernels(*argv: str | Path) -> int:
    return run(main, ["kernels", *map(str, argv)])


@pytest.fixture
def _with_kernels(monkeypatch):
    """Give hyper-kernels to the model of a checkpoint."""
    original = ModelSource.load

    def load(source: ModelSource) -> LoadedModel:
        loaded = original(source)
        return loaded._replace(model=HyperResNet(loaded.model))

    monkeypatch.setattr(ModelSource, "load", load)


@pytest.mark.usefixtures("_with_kernels")
def test_kernels_are_drawn_and_described(tmp_path, checkpoint, capsys):
    sheet, numbers = tmp_path / "new" / "kernels.png", tmp_path / "kernels.json"
    assert kernels("--checkpoint", checkpoint, "--output", sheet, "--statistics", numbers) == 0
    with Image.open(sheet) as image:
        assert image.size == (round(2 * 2.6 * 150), round(2.6 * 150))
    result = json.loads(numbers.read_text())
    assert (result["model"], result["checkpoint"]) == ("test_resnet", str(checkpoint))
    assert result["kernels"]["blocks.0.global"] == {
        "shape": [2, 1, 2],
        "mean": 0.0,
        "std": pytest.approx(3.5**0.5),
        "min": -3.0,
        "max": 2.0,
    }
    assert {"versions", "hardware", "command"} <= set(result)
    assert "blocks.0.channel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--checkpoint", "{checkpoint}", "--output", "k.png"], 1, "test_resnet has no hyper-kernels"),
        (["--output", "k.png"], 2, "give --checkpoint FILE, or --model NAME"),
        (["--checkpoint", "{checkpoint}"], 2, "missing: --output"),
        (["--checkpoint", "{checkpoint}", "--output", "k.bmp"], 1, ".png, .pdf, .svg"),
        (["--checkpoint", "gone.ckpt", "--output", "k.png"], 1, "no checkpoint at gone.ckpt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_kernels_errors_name_the_input_in_one_line(tmp_path, monkeypatch, checkpoint, capsys, options, status, says):
    monkeypatch.chdir(tmp_path)
    assert kernels(*(option.format(checkpoint=checkpoint) for option in options)) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not list(tmp_path.glob("k.*"))
