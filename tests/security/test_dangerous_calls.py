"""No call in the packages or scripts runs code from a file or opens a shell; allowed calls are listed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted(
    [
        *(REPOSITORY / "visionattn").rglob("*.py"),
        *(REPOSITORY / "kernels" / "visionattn_kernels").rglob("*.py"),
        *(REPOSITORY / name for name in ("train.py", "eval.py")),
    ]
)

NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "tempfile.mktemp"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "shutil.unpack_archive", "code.interact"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load", "torch.package.PackageImporter"),
    *("joblib.load", "pandas.read_pickle", "numpy.lib.format.read_array", "urllib.request.urlopen"),
}
NEVER_FROM = ("pickle.", "_pickle.", "cPickle.", "dill.", "cloudpickle.", "marshal.", "shelve.", "os.exec", "os.spawn")
DEMANDED = {"torch.load": ("weights_only", True), "timm.models.load_state_dict": ("weights_only", True)}
REFUSED = {"allow_pickle": True, "trust_remote_code": True, "shell": True, "weights_only": False, "verify": False}
"""Keywords that must not have this value, nor one that is not written out."""
EXTRACTION = ("extractall", "tarfile.extract")
"""Of archives: these want ``filter="data"``."""

ALLOWED: dict[tuple[str, str], str] = {
    ("visionattn/data/image_cache.py", "pickle.dump"): "memory that only the processes of a training share",
    ("visionattn/data/image_cache.py", "pickle.loads"): "the same",
    ("visionattn/data/own_transform.py", "importlib.import_module"): "what --data.transform names, never a checkpoint",
    ("visionattn/lazy.py", "importlib.import_module"): "modules that the packages name in their own files",
    ("kernels/visionattn_kernels/_native/build.py", "subprocess.run"): "the C++ compiler, a list of words",
    ("kernels/visionattn_kernels/_native/build.py", "ctypes.CDLL"): "what that compiler made",
    ("kernels/visionattn_kernels/provenance.py", "subprocess.run"): "git, a list of words",
}
WATCHED = ("subprocess.", "importlib.import_module", "ctypes.CDLL", "ctypes.cdll", "torch.ops.load_library")
"""Calls that have to be in ALLOWED, with a reason, as those of NEVER and NEVER_FROM."""


def imported(tree: ast.AST) -> dict[str, str]:
    """Return the full name of each imported name of a file."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def called(node: ast.expr, names: dict[str, str]) -> str:
    """Return the full name of a called function: ``numpy.load`` for ``np.load``."""
    if isinstance(node, ast.Attribute):
        return f"{called(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def find(source: str, file: str = "") -> Iterator[str]:
    """Return the dangerous calls of a file."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, where = called(node.func, names), f"{file}:{node.lineno}"
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        given = {key: value.value if isinstance(value, ast.Constant) else ... for key, value in keywords.items()}
        if (name in NEVER or name.startswith(NEVER_FROM)) and (file, name) not in ALLOWED:
            yield f"{where}: {name} is never called"
        if name in DEMANDED and given.get(DEMANDED[name][0]) is not DEMANDED[name][1]:
            yield f"{where}: {name} wants {DEMANDED[name][0]}={DEMANDED[name][1]}"
        for keyword, value in REFUSED.items():
            if given.get(keyword, not value) in (value, ...):
                yield f"{where}: {keyword} is not to be {value}"
        if name.endswith(EXTRACTION) and given.get("filter") != "data":
            yield f'{where}: {name} wants filter="data"'
        if name.startswith(WATCHED) and not isinstance(ALLOWED.get((file, name)), str):
            yield f"{where}: {name} is not in the list of allowed calls"


def test_sources_make_no_dangerous_calls() -> None:
    assert len(SOURCES) > 150
    found = [line for path in SOURCES for line in find(path.read_text(), path.relative_to(REPOSITORY).as_posix())]
    assert not found, "\n".join(found)


def test_allowed_calls_all_exist() -> None:
    for file, name in ALLOWED:
        tree = ast.parse((REPOSITORY / file).read_text())
        calls = {called(node.func, imported(tree)) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert name in calls, f"{file} calls no {name} any more"


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f)",
        "import torch as t\nt.load(f, weights_only=False)",
        "from torch import load\nload(f, weights_only=flag)",
        "import pickle\npickle.load(f)",
        "from pickle import loads as read\nread(b)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy\nnumpy.load(f, allow_pickle=trusted)",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "eval(text)",
        "exec(text)",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess as s\ns.Popen(['ls'])",
        "import tarfile\ntarfile.open(f).extractall(d)",
        "archive.extractall(d, filter='fully_trusted')",
        "model(name, trust_remote_code=True)",
        "import importlib\nimportlib.import_module(name)",
    ],
)
def test_dangerous_call_is_found(source: str) -> None:
    assert list(find(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "import numpy as np\nnp.load(f)\nnp.load(f, allow_pickle=False)",
        "import yaml\nyaml.safe_load(f)",
        "model.eval()\nmodel.compile()",
        "import tarfile\ntarfile.open(f).extractall(d, filter='data')",
        "import re\nre.compile('x')",
    ],
)
def test_harmless_call_is_not_reported(source: str) -> None:
    assert not list(find(source))
