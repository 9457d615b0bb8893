"""Asks PyPI whether versions in this environment have known vulnerabilities; fails if one has that is not ALLOWED.

Without a connection it says that it knows nothing, and passes.
"""

import json
import subprocess
import sys
from typing import Any

ALLOWED: dict[str, str] = {}
"""Vulnerabilities that do not concern this project, by their names, each with the reason."""

COMMAND = ["pip-audit", "--skip-editable", "--progress-spinner", "off", "--timeout", "5", "--format", "json"]
SECONDS = 50


def main() -> int:
    """Prints what is found; the exit status tells whether it matters."""
    try:
        found = subprocess.run(COMMAND, capture_output=True, text=True, timeout=SECONDS, check=False)
        packages = json.loads(found.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        print(f"audit: nothing is known of this environment, as pip-audit gave no answer ({type(error).__name__})")
        return 0
    status, lines = judge(packages)
    print("\n".join(lines))
    return status


def judge(packages: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Exit status and what to say of pip-audit's findings."""
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return 0, [f"audit: nothing is known of {len(packages)} packages, as the service has no answer for any"]
    lines, bad = [], 0
    for package in known:
        for entry in package["vulns"]:
            reason = next((ALLOWED[name] for name in (entry["id"], *entry["aliases"]) if name in ALLOWED), None)
            bad += reason is None
            remedy = f"allowed: {reason}" if reason else f"fixed in {', '.join(entry['fix_versions']) or 'no version'}"
            lines.append(f"{package['name']} {package['version']}: {entry['id']}, {remedy}")
    lines.append(
        f"audit: {bad} vulnerabilities in {len(known)} packages; {len(packages) - len(known)} could not be asked"
    )
    return int(bad > 0), lines


if __name__ == "__main__":
    sys.exit(main())
