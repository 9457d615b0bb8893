"""``eval.py leaderboard``: one table of the results of several probing runs."""

import glob
from pathlib import Path

from visionattn.cli.errors import UsageError
from visionattn.output import check_writable, write_text
from visionattn.probing.leaderboard import collect, points, read_results, to_markdown
from visionattn.viz.leaderboard import save_leaderboard


def leaderboard(results: list[Path], output: Path | None = None) -> None:
    """Print one table of the results of several runs of probe, and draw it.

    Args:
        results: JSON files that probe --output wrote, or patterns of their names.
        output: Markdown file for the table; an image beside it has the same name and ends in .png.
    """
    if output is not None and output.suffix != ".md":
        raise UsageError(f"--output of a leaderboard must be a Markdown file, NAME.md, got {output}")
    check_writable(output)
    entries = collect([row for path in _expand(results) for row in read_results(path)])
    text = to_markdown(entries)
    if output is not None:
        write_text(text, output)
        save_leaderboard(points(entries), output.with_suffix(".png"))
    print(text, end="")


def _expand(patterns: list[Path]) -> list[Path]:
    """Return the files of patterns, which a shell passes on if they match nothing or stand in quotes."""
    paths: list[Path] = []
    for pattern in patterns:
        found = [Path(name) for name in sorted(glob.glob(str(pattern)))]  # noqa: PTH207  may be absolute
        if not found:
            raise FileNotFoundError(f"no results at {pattern}: name JSON files that eval.py probe --output wrote")
        paths += found
    return list(dict.fromkeys(paths))
