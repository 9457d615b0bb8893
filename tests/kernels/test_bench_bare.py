"""Tests for a GPU are collected on a machine that has torch, triton, numpy and pytest alone, from a plain checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]

BARE = """
import sys
from importlib.abc import MetaPathFinder

HERE = {"kernels", "tests", "visionattn_kernels"}
TESTS = {"_pytest", "iniconfig", "packaging", "pluggy", "py", "pygments", "pytest"}
TORCH = {
    *("filelock", "fsspec", "functorch", "jinja2", "markupsafe", "mpmath", "networkx", "numpy", "sympy", "torch"),
    *("torchgen", "triton", "typing_extensions"),
}

class Bare(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        package = name.partition(".")[0]
        known = {*sys.stdlib_module_names, *HERE, *TESTS, *TORCH, "conftest"}
        if package not in known and not package.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {package!r} (on a bare machine)", name=package)

sys.meta_path.insert(0, Bare())
"""


def test_gpu_tests_are_collected_on_a_bare_machine(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BARE)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert files >= {f"tests/kernels/test_{name}.py" for name in ("flex", "triton")}
