"""The page of models that eval.py throughput writes: cells, columns, and resumed runs."""

import json

import pytest

from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.cli.zoo import write_zoo
from visionattn.evaluation import throughput as module


def row(model, speed, size=(32, 32), **values):
    found = {"img_height": size[0], "img_size": size[1], "params_m": 1.234, "gmacs": 0.04561}
    return {"model": model, **found, "images_per_second": speed, "median_ms": 1.0, "peak_memory_mib": 1.0} | (
        values | {"error": None}
    )


def results(rows, **values):
    return {
        "results": rows,
        "hardware": {"device": "cpu", "name": "A processor", "threads": 2},
        "versions": {"torch": "2.14.1", "natten": None},
        "git_revision": "abc-dirty",
        "command": "eval.py throughput --models a",
        "precision": "32-true",
        "batch_size": 1,
        "train": False,
        "channels_last": False,
        "model_kwargs": {},
    } | values


def test_zoo_has_a_cell_for_each_speed_and_the_conditions_below(tmp_path):
    first = results([row("a", 1234.5), row("b", 7.891, (1, 784), gmacs=None), {"model": "c", "error": "killed"}])
    gpu = {"device": "cuda", "name": "A card", "memory_gib": 80}
    second = results([row("a", 9e4), row("b", 5, (28, 28))], hardware=gpu, batch_size=64, train=True)
    write_zoo([first, second], tmp_path / "zoo.md")
    lines = (tmp_path / "zoo.md").read_text().splitlines()
    assert "| `a` | 32×32 | 1.23 | 0.0456 | 1,234 | 90,000 |" in lines
    assert "| `b` | 1×784 | 1.23 | – | 7.89 | – |" in lines, "a speed at another image size is left out"
    assert "| `c` | failed | – | – | – | – |" in lines
    cpu, card = (line for line in lines if line[:2] in ("1.", "2."))
    assert cpu == (
        "1. A processor, threads: 2: inference, 32-true, batch size 1; torch 2.14.1; revision abc with changes. "
        "`python eval.py throughput --models a`"
    )
    assert card.startswith("2. A card: training, forward, backward and AdamW, 32-true, batch size 64;")


def test_resume_measures_the_missing_models(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(name, conditions):
        measured.append(name)
        if name == "test_vit" and len(measured) == 2:
            raise KeyboardInterrupt
        return module.ThroughputRow(**row(name, 10.0))

    monkeypatch.setattr(module, "_measure_apart", measure)
    output, zoo = tmp_path / "t.json", tmp_path / "zoo.md"
    argv = ["throughput", "--models=test_resnet,test_vit", "--device=cpu", f"--output={output}", f"--markdown={zoo}"]
    assert run(main, argv) == 130
    assert [found["model"] for found in json.loads(output.read_text())["results"]] == ["test_resnet"]
    assert "test_resnet" in zoo.read_text()
    assert run(main, [*argv, "--resume"]) == 0
    assert measured == ["test_resnet", "test_vit", "test_vit"]
    assert {"`test_resnet`", "`test_vit`"} <= set(zoo.read_text().split())
    capsys.readouterr()
    assert run(main, [*argv, "--resume", "--batch-size=7"]) == 1
    assert "was measured with batch_size 32, here it is 7" in capsys.readouterr().err
    output.write_text("{}")
    assert run(main, [*argv, "--resume"]) == 1
    assert f"{output} holds no results" in capsys.readouterr().err
    assert run(main, ["throughput", "--models=test_vit", "--resume"]) == 1
    assert "--output" in capsys.readouterr().err


def test_module_pattern_names_all_models_of_a_package():
    ours = module.expand_names(["module:visionattn"])
    assert {"nat_pico", "halo_h7", "terminator_1d", "dcal_vit_pico"} <= set(ours)
    assert module.expand_names(["module:visionattn.models.terminator", "nat_pico"]) == [
        *(name for name in ours if name.startswith("terminator")),
        "nat_pico",
    ]
    with pytest.raises(ValueError, match=r"no model is registered by 'visionatt'"):
        module.expand_names(["module:visionatt"])
