"""One look for all figures, drawn without a display and without pyplot's global state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.files import as_text, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
DPI = 150

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7A7A7A"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches; its labels are placed so that nothing is cut off."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def as_label(name: str) -> str:
    """Return a name of the user's as a figure draws it: as text, and with dollars that begin no formula."""
    return as_text(name).replace("$", r"\$")


def style_axes(axes: "Axes", **labels: Any) -> None:
    """Sets labels and title as ``Axes.set`` does, and takes away what is not data."""
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)


def check_suffix(path: str | Path) -> None:
    """Checks that a figure can be written to ``path``.

    Raises:
        ValueError: its suffix says otherwise.
    """
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"cannot write a figure to {path}: its suffix must be one of {', '.join(SUFFIXES)}")


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Writes ``figure`` as the suffix of ``path`` says, whole or not at all; makes folders that are missing.

    Raises:
        ValueError: a suffix that no figure can be written as.
    """
    path = Path(path).expanduser()
    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return path
