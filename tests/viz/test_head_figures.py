"""Maps of heads."""

import numpy as np

from visionattn.viz.figure import new_figure
from visionattn.viz.head_scores import draw_head_map


def test_cells_of_a_map_hold_its_numbers() -> None:
    axes = new_figure(4, 3).subplots()
    draw_head_map(axes, np.array([[10.5, 20.24, 0.5], [-0.05, 123.4, np.nan]]), [0, 3])
    assert [text.get_text() for text in axes.texts] == ["10.5", "20.2", ".5", "-.05", "123"]
