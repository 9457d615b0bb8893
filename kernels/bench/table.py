"""Makes the Markdown table of kernels/README.md from the rows of a benchmark.

python kernels/bench/table.py kernels/bench/results/attention-cpu.json
"""

import json
import sys
from pathlib import Path

PEERS = ("gather", "flex", "sdpa-full", "natten")


def main(path: str) -> None:
    """Prints one line per problem and direction: our median, and how many times longer each peer takes."""
    rows = json.loads(Path(path).read_text())["rows"]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cell = f"{row['median_ms']:.1f}" if row["contender"] == "visionattn" else f"{row['speedup_of_ours']:.1f}×"
        cells.setdefault((row["problem"], row["direction"]), {})[row["contender"]] = cell
    print(f"| problem | direction | ours (ms) | {' | '.join(PEERS)} |")
    print(f"|---|---|{'---:|' * (len(PEERS) + 1)}")
    for (problem, direction), found in cells.items():
        line = [problem, direction, found["visionattn"], *(found.get(peer, "–") for peer in PEERS)]
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main(sys.argv[1])
