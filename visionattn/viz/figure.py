"""Common style of all figures, without a display or pyplot's global state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.io import as_text, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
DPI = 150

# Okabe and Ito's colours, distinguishable for colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7A7A7A"


def new_figure(width: float, height: float) -> "Figure":
    """Create an empty figure of this size in inches, with a layout that fits all labels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def as_label(name: str) -> str:
    """Return a user's name as text for a figure, with dollars escaped so that they begin no formula."""
    return as_text(name).replace("$", r"\$")


def style_axes(axes: "Axes", **labels: Any) -> None:
    """Set labels and title as ``Axes.set`` does, and apply the common style."""
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)


def check_suffix(path: str | Path) -> None:
    """Raise a ValueError unless the suffix of ``path`` is a figure's."""
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"cannot write a figure to {path}: its suffix must be one of {', '.join(SUFFIXES)}")


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure atomically, in the format of the suffix, see `check_suffix`; make missing folders."""
    path = Path(path).expanduser()
    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return path
