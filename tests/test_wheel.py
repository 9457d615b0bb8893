"""The wheel runs the quick start and a command of each kind in a fresh environment without a checkout."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from email import message_from_string
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
OWN = {"visionattn", "visionattn_kernels"}
BROUGHT_BY_OTHERS = {
    "cv2": "opencv-python-headless",  # whichever of its twins an environment has
    "faiss": "faiss-cpu",
    "onnx_ir": "onnxscript",
    "triton": "torch",
}
"""Modules that are imported where they are, and come with a package of another name that is declared."""

COMMANDS = [
    "fit --config configs/quickstart.yaml --trainer.max_epochs 1 --trainer.limit_train_batches 2",
    "fit --config reid/identities --trainer.max_epochs 1 --trainer.limit_train_batches 1",
    "validate --config quickstart --ckpt_path runs/quickstart/0/checkpoints/last.ckpt",
    "predict nat_pico.cifar10 IMAGES --output predictions.csv",
    "classify --checkpoint runs/quickstart/0/checkpoints/last.ckpt --output classify.json",
    "probe --model resnet_pico.cifar10 --pretrained --data.name digits --heads knn,linear --training.epochs 1",
    "reid --checkpoint runs/reid-identities/0/checkpoints/last.ckpt --output reid.json --data.name identities",
    "binding --config evaluation/binding_coco --model vit_pico_patch4_32 --pretrained false --control null"
    " --data.root null --data.name synthetic --data.limit 4 --seeds 1 --training.epochs 1 --output binding.json",
    "throughput --models nat_pico --img_size 32 --batch-size 1 --device cpu --seconds 0.1 --output speed.json",
    "eval kernels --model terminator_pico --output kernels.png",
    "export hub --checkpoint runs/quickstart/0/checkpoints/last.ckpt --output hub",
]
"""First commands of a new user, each in the folder where the ones before it ran."""


def imported_packages(folder: Path) -> set[str]:
    """Return the top-level names that the modules below a folder import, wherever the import stands."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - OWN


def normalize(name: str) -> str:
    """Return the name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("folder", ["visionattn", "kernels/visionattn_kernels"])
def test_imports_are_all_declared(folder: str) -> None:
    declared = {normalize(re.split(r"[\s\[<>=;!~]", line, maxsplit=1)[0]) for line in requires("visionattn") or []}
    providers = packages_distributions()
    undeclared = {
        name
        for name in imported_packages(ROOT / folder)
        if declared.isdisjoint(map(normalize, [*providers.get(name, [name]), BROUGHT_BY_OTHERS.get(name, name)]))
    }
    assert undeclared == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(pip, check=True)
    return next(folder.glob("visionattn-*.whl"))


@pytest.mark.slow
def test_wheel_holds_configs_and_a_readme_whose_links_work_elsewhere(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"visionattn/{name}" for name in configs} <= names
    message = message_from_string(metadata)
    (source,) = (url.split(", ")[1] for url in message.get_all("Project-URL", []) if url.startswith("Source"))
    links = re.findall(r"\]\(([^)\s]+)\)", str(message.get_payload()))
    assert f"{source}/blob/main/docs/train.md" in links
    assert [link for link in links if not link.startswith("https://")] == []


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Iterator[Path]:
    """Return Python of a fresh environment with the wheel and its dependencies; it is removed at the end."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    yield python
    shutil.rmtree(environment)


@pytest.mark.slow
def test_wheel_runs_every_kind_of_command_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    images = folder / "images"
    images.mkdir(parents=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    drawing = "from PIL import Image; [Image.effect_noise((32, 32), 60).save(f'images/{i}.png') for i in range(3)]"
    options: Any = {"cwd": folder, "env": variables, "capture_output": True, "text": True, "check": False}
    for words in (
        ["-c", drawing],
        ["-c", "import timm, visionattn; timm.create_model('nat_pico.cifar10', pretrained=True)"],
        *(["-m", "visionattn", *shlex.split(command.replace("IMAGES", str(images)))] for command in COMMANDS),
    ):
        done = subprocess.run([installed, *words], **options)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert len((folder / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 4
