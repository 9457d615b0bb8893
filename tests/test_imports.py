"""Imports of the packages load no more than timm does; heavy modules are loaded when they are used."""

import importlib
import json
import subprocess
import sys
from typing import Literal, get_origin

import pytest

COMPILER = "torch._dynamo"
HEAVY = {"wandb", "cv2", "triton", "natten", "matplotlib", "sklearn", "lightning", "pytorch_lightning", "torchmetrics"}


def modules_after(statement: str, parts: int = 1) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after ``statement``, by the first parts of their names."""
    program = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    loaded = set(json.loads(output.splitlines()[-1]))
    return {".".join(name.split(".")[:parts]) for name in loaded} | (loaded & {COMPILER})


@pytest.fixture(scope="module")
def with_timm() -> set[str]:
    return modules_after("import timm")


def test_import_of_visionattn_loads_nothing_heavy(with_timm):
    brought = modules_after("import visionattn, timm, visionattn.evaluation") - with_timm
    assert brought & HEAVY == set()
    assert "visionattn_kernels" in brought


@pytest.mark.parametrize("word", ["--help", "nonsense"])
@pytest.mark.parametrize("program", ["__main__ import dispatch", "cli.train import main", "cli.evaluate import main"])
def test_list_of_commands_needs_no_torch(program, word):
    name = program.split()[-1]
    brought = modules_after(
        f"from visionattn.{program}; from visionattn.cli.errors import run; run({name}, ['{word}'])"
    )
    assert brought & (HEAVY | {"torch", "timm", "numpy"}) == set()
    assert "visionattn" in brought


@pytest.mark.slow
@pytest.mark.parametrize("order", ["visionattn, timm", "timm, visionattn", "visionattn.layers.accelerate, timm"])
def test_models_are_registered_whichever_is_imported_first(order):
    assert "visionattn.models" in modules_after(f"import {order}", parts=2)


@pytest.mark.slow
def test_models_are_registered_after_a_search_for_timm():
    search = "import importlib.util; importlib.util.find_spec('timm')"
    brought = modules_after(f"import visionattn; {search}; import timm.layers", parts=2)
    assert "visionattn.models" in brought


def test_kernels_need_torch_alone():
    brought = modules_after("import visionattn_kernels")
    # torch's FLOP counter, with which operators register, imports triton if it is installed.
    assert (
        brought & ((HEAVY - {"triton"}) | {COMPILER, "timm", "torchvision", "visionattn", "jsonargparse", "rich"})
        == set()
    )


def test_figures_load_matplotlib_only_when_drawn():
    brought = modules_after("import visionattn.viz.curves, visionattn.viz.confusion")
    assert brought & {"matplotlib", "lightning", "cv2"} == set()


def test_reading_an_image_loads_no_lightning():
    brought = modules_after("from visionattn.data import read_image; import visionattn.metrics, visionattn.losses")
    assert brought & {"lightning", "torchmetrics", "pytorch_metric_learning", "matplotlib"} == set()


PUBLIC = [
    "data",
    "embedding",
    "evaluation",
    "layers",
    "losses",
    "metrics",
    "models",
    "objects",
    "probing",
    "tasks",
    "training",
]


@pytest.mark.parametrize("package", [*PUBLIC, "viz"])
def test_public_names_exist_and_have_docstrings(package):
    module = importlib.import_module(f"visionattn.{package}")
    assert sorted(module.__all__, key=lambda name: (not name.isupper(), name)) == module.__all__, "constants first"
    values = {name: getattr(module, name) for name in module.__all__}
    # A type such as Literal[...] cannot hold a docstring.
    assert [name for name, value in values.items() if not value.__doc__ and get_origin(value) is not Literal] == []


@pytest.mark.parametrize(
    "package", ["", ".data", ".evaluation", ".losses", ".metrics", ".objects", ".probing", ".training"]
)
def test_lazy_package_gives_its_public_names_and_no_others(package):
    module = importlib.import_module(f"visionattn{package}")
    assert set(module.__all__) - set(dir(module)) == set(), "notebooks complete the names of dir()"
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    with pytest.raises(AttributeError, match=f"'visionattn{package}' has no attribute 'missing'"):
        _ = module.missing


def test_import_of_a_program_leaves_the_collector_as_it_was():
    program = (
        "import gc; from visionattn.lazy import import_program\n"
        "module = import_program('json'); assert module.loads('1') == 1\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 0\n"
        "gc.unfreeze(); assert import_program('json') is module and gc.get_freeze_count() == 0\n"
        "gc.disable(); import_program('wave'); assert not gc.isenabled()\n"
        "try:\n    import_program('visionattn.missing')\nexcept ImportError:\n    assert not gc.isenabled()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
