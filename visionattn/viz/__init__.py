"""Figures and image sheets of results; ``save_`` functions write a file, ``draw_`` functions return bytes [H, W, 3].

matplotlib and OpenCV are imported when something is drawn.
"""

from visionattn.viz.attention_maps import draw_attention_maps, save_attention_maps
from visionattn.viz.binding import Click, DepthCurve, save_depth_curves, save_similarity_sheet
from visionattn.viz.components import draw_components
from visionattn.viz.confusion import save_confusion_matrix
from visionattn.viz.contact_sheet import save_contact_sheet
from visionattn.viz.curves import save_learning_curve
from visionattn.viz.head_maps import HeadRow, draw_head_maps
from visionattn.viz.heat import draw_heat
from visionattn.viz.heat_maps import draw_heat_maps
from visionattn.viz.image import denormalize, save_image, to_pixels
from visionattn.viz.leaderboard import Point, save_leaderboard
from visionattn.viz.ranked_lists import RankedList, draw_ranked_list, save_ranked_lists
from visionattn.viz.reconstructions import save_reconstructions
from visionattn.viz.rollout import draw_rollout
from visionattn.viz.segmentation import class_colours, save_label_map, save_segmentation_sheet
from visionattn.viz.slots import colour_segments, save_slots
from visionattn.viz.windows import WINDOWS, save_windows, visible_keys

__all__ = [
    "WINDOWS", "Click", "DepthCurve", "HeadRow", "Point", "RankedList", "class_colours", "colour_segments",
    "denormalize", "draw_attention_maps", "draw_components", "draw_head_maps", "draw_heat", "draw_heat_maps",
    "draw_ranked_list", "draw_rollout", "save_attention_maps", "save_confusion_matrix", "save_contact_sheet",
    "save_depth_curves", "save_image", "save_label_map", "save_leaderboard", "save_learning_curve",
    "save_ranked_lists", "save_reconstructions", "save_segmentation_sheet", "save_similarity_sheet", "save_slots",
    "save_windows", "to_pixels", "visible_keys",
]  # fmt: skip
