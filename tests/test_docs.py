"""Pages of docs/: their code runs, their commands parse, and their tables agree with the code.

For those who write pages: each page has a folder of its own, in which its blocks run in their order. Those of
```` ```python ```` share a namespace. Of ```` ```bash ````, what runs Python or ``visionattn`` runs; all else must be
one of ``code_blocks.NOT_OURS``. The folder holds ``configs/`` of this repository,
``runs/quickstart/0/checkpoints/{best,last}.ckpt``, a ``nat_pico`` that has seen a few batches of the embedded digits,
and ``data/images/{train,val}/{circle,square,triangle}/*.png``, drawn images of 48 pixels.

A block that is not to run every time says so: ```` ```bash { .slow } ```` runs with ``pytest -m slow``, and of
```` ```bash { .parse } ````, which wants GPUs, large data or hours, commands of train.py and eval.py are parsed. Other
languages (text, yaml) are not looked at. A page that imports one of ``OPTIONAL`` is skipped if that is not installed.
"""

import ast
import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import visionattn  # noqa: F401  registers the models
from tests import zoo
from tests.code_blocks import ROOT, Block, execute, parse, read_blocks
from visionattn.evaluation.throughput import expand_names

DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "tutorial.ipynb"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCKS = {page: read_blocks(page) for page in PAGES}
FAST = [page for page in PAGES if any(block.language in ("python", "bash") for block in BLOCKS[page])]
SLOW = [page for page in FAST if any("slow" in block.classes for block in BLOCKS[page])]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
OPTIONAL = ["skimage", *(package.replace("-", "_") for package in EXTRAS["works-with"])]
"""Modules of the extras ``docs`` and ``works-with`` that pages import."""
name_of = {"ids": lambda page: str(page.relative_to(DOCS))}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the files that every page finds in its folder."""
    root = tmp_path_factory.mktemp("docs")
    draw_images(root / "data" / "images")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(root)
        words = (
            f"python train.py fit --config {ROOT}/configs/quickstart.yaml --trainer.max_epochs 1 --data.num_workers 0"
        )
        execute([*words.split(), "--trainer.limit_train_batches", "6", "--trainer.limit_val_batches", "1"], patched)
    return root


def draw_images(root: Path) -> None:
    """Draw shapes of any colour on noise: 12 of each for training, 4 for validation."""
    rng = np.random.default_rng(0)
    corners = {"circle": 40, "square": 4, "triangle": 3}
    for split, count in (("train", 12), ("val", 4)):
        for shape, sides in corners.items():
            (root / split / shape).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 120, (48, 48, 3), dtype=np.uint8))
                colour = tuple(int(channel) for channel in rng.integers(130, 255, 3))
                x, y, radius = (int(rng.integers(*bounds)) for bounds in ((18, 30), (18, 30), (9, 17)))
                ImageDraw.Draw(image).regular_polygon((x, y, radius), sides, fill=colour)
                image.save(root / split / shape / f"{number}.png")


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the prepared files to a folder of the page's own, and work there."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def skip_without_packages(page: Path) -> None:
    code = "".join(block.code for block in BLOCKS[page] if block.language == "python")
    for name in OPTIONAL:
        if re.search(rf"^(?:import|from) {name}\b", code, re.MULTILINE) and not find_spec(name):
            pytest.skip(f"{name} is not installed here")


def run_page(page: Path, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_packages(page)
    # A registered module: classes of a page may be pickled, and timm looks up the module of a model.
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in BLOCKS[page]:
        if "parse" in block.classes or ("slow" in block.classes and not slow):
            continue
        try:
            run_block(block, page, module, monkeypatch)
        except Exception as error:
            error.add_note(f"{page.relative_to(ROOT)}, block at line {block.line}")
            raise


def run_block(block: Block, page: Path, module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.language == "python":
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), vars(module))
    elif block.language == "bash":
        for words in block.commands():
            execute(words, monkeypatch)


@pytest.mark.parametrize("page", FAST, **name_of)
@pytest.mark.usefixtures("folder")
def test_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, slow=False, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, **name_of)
@pytest.mark.usefixtures("folder")
def test_page_with_slow_commands_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, slow=True, monkeypatch=monkeypatch)


@pytest.mark.parametrize("page", FAST, **name_of)
def test_blocks_that_do_not_run_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for block in BLOCKS[page]:
        if block.language == "bash" and block.classes & {"parse", "slow"}:
            for words in block.commands():
                parse(words, monkeypatch)


@pytest.mark.parametrize("page", PAGES, **name_of)
def test_blocks_are_all_found(page: Path) -> None:
    """An indented fence, or one that is never closed, would not be tested."""
    fences = re.findall(r"^\s*```", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(fences) == 2 * len(BLOCKS[page])
    known = {"parse", "slow"}
    assert [block.line for block in BLOCKS[page] if block.classes - known] == []


def test_zoo_lists_every_model() -> None:
    assert [name for name, _ in zoo.ROWS] == expand_names(["module:visionattn"])


def test_works_with_pages_name_the_versions_they_were_run_with() -> None:
    """A version in the table is that of its page; all versions of the page are those of constraints.txt."""
    folder = DOCS / "works_with"
    table = (folder / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| ([\d.]+) \| .* \| \[[^]]+\]\(([^)]+)\) \|$", table, re.MULTILINE)
    assert {page for *_, page in rows} | {"index.md"} == {path.name for path in folder.glob("*.md")}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-").splitlines()
    for library, version, page in rows:
        line = re.search(r"^Run with .*$", (folder / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert line is not None, page
        named = re.findall(r"([\w-]+) (\d[\d.]*\d)", line[0].lower().split(". ")[0])
        assert (library, version) in named, page
        assert {f"{name}=={number}" for name, number in named} <= set(pins), page


def test_install_page_lists_the_extras() -> None:
    table = (DOCS / "install.md").read_text(encoding="utf-8").split("## Extras")[1].split("##")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(EXTRAS)


def test_results_table_equals_the_configs() -> None:
    done = subprocess.run([sys.executable, DOCS / "tables.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_notebook_is_stored_with_its_outputs() -> None:
    """Cells that print or draw have outputs, without errors, warnings, durations or absolute paths."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 1_200_000
    for number, cell in enumerate(json.loads(text)["cells"]):
        if cell["cell_type"] != "code":
            continue
        source, outputs = "".join(cell["source"]), cell["outputs"]
        kinds = {output["output_type"] for output in outputs}
        assert kinds <= {"stream", "display_data", "execute_result"}, f"cell {number}"
        assert "stderr" not in {output.get("name") for output in outputs}, f"cell {number} has a warning"
        printed = [line for output in outputs for line in output.get("text", [])]
        assert bool(printed) == ("print(" in source), f"cell {number}"
        images = [output["data"]["image/png"] for output in outputs if "data" in output]
        assert len(images) == len(re.findall(r"^(?:plt\.)?show\(", source, re.MULTILINE)), f"cell {number}"
        for image in images:
            Image.open(io.BytesIO(base64.b64decode("".join(image)))).verify()
        assert not re.search(r"(?:^|[\s'\"(])/\w|\bseconds?\b|\d s\b", source + "".join(printed)), f"cell {number}"


def test_notebook_imports_exist() -> None:
    """The rest of the notebook runs with ``-m slow``."""
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            imports = [node for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), NOTEBOOK, "exec"), {})


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(plt, "show", lambda: (drawn.append(len(plt.gcf().axes)), plt.close("all")))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert drawn == [16, 12]
    written = {path.name for path in Path("runs/tutorial").glob("*.png")}
    assert written == {"confusion.png", "attention.png", "depth.png", "rollout.png", "pca.png", "saliency.png"}
    assert names["result"].top1 > 0.93
    trained, untrained = ({probe.name: probe.top1 for probe in names["probes"][kind]} for kind in ("trained", "random"))
    assert all(trained[name] > untrained[name] for name in trained)
    assert names["row"].accuracy > names["binding"].chance
