"""The table of all models in docs/zoo.md."""

import re
from pathlib import Path

from torch import nn

ZOO = Path(__file__).parents[1] / "docs" / "zoo.md"
ROWS = re.findall(r"^\| `(\w+)` \| [\d×]+ \| ([\d.]+) ", ZOO.read_text(encoding="utf-8"), re.MULTILINE)
"""Names and their sizes in millions of parameters."""


def check_size(name: str, model: nn.Module) -> None:
    """Compare a model with its row."""
    assert dict(ROWS)[name] == f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}"
