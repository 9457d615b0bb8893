"""Facts beside every measured number: versions, hardware, command, revision."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def provenance(device: torch.device) -> dict[str, Any]:
    """Return versions, hardware, command and git revision of a measured number."""
    return {
        "versions": {"python": platform.python_version()}
        | {
            name: package_version(name)
            for name in ("visionattn", "torch", "torchvision", "timm", "lightning", "natten")
        },
        "hardware": hardware(device),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_revision": _git_revision(),
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the device's name, and for a CPU the number of torch's threads."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"device": str(device), "name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    return {"device": str(device), "name": _cpu_name(), "threads": torch.get_num_threads()}


def package_version(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_revision() -> str | None:
    """Return the commit of this code, with ``-dirty`` if files differ from it.

    Without git, as in an installed wheel or a copy of the files, it is `$VISIONATTN_REVISION`, or None.
    """
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=here.parent, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)  # a wheel may lie inside another project's repository
        return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*").strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("VISIONATTN_REVISION")
