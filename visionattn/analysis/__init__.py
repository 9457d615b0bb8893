"""Analysis of a model on single images: attention, features, gradients.

`look` draws sheets of all of these. `record_attention` records the attention weights of `attention_layers`.
`fit_colours` finds the principal components of `patch_features`. `grad_cam`, `smooth_gradients` and
`integrated_gradients` explain the score of a class.
"""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.analysis.attention import AttentionLayer, attention_layers, record_attention
    from visionattn.analysis.components import (
        ComponentColours,
        PatchColours,
        Separation,
        fit_colours,
        patch_features,
        separate_foreground,
    )
    from visionattn.analysis.looking import SHEETS, draw_sheets, look
    from visionattn.analysis.recorded import (
        RecordedAttention,
        ShiftedWindowAttention,
        TokenAttention,
        WindowAttention,
    )
    from visionattn.analysis.saliency import (
        grad_cam,
        input_gradients,
        integrated_gradients,
        saliency_map,
        smooth_gradients,
    )
    from visionattn.analysis.subject import LookOptions, NoSheetError, Subject, load_random, prepare_subject

__all__ = [
    "SHEETS", "AttentionLayer", "ComponentColours", "LookOptions", "NoSheetError", "PatchColours", "RecordedAttention",
    "Separation", "ShiftedWindowAttention", "Subject", "TokenAttention", "WindowAttention", "attention_layers",
    "draw_sheets", "fit_colours", "grad_cam", "input_gradients", "integrated_gradients", "load_random", "look",
    "patch_features", "prepare_subject", "record_attention", "saliency_map", "separate_foreground", "smooth_gradients",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "attention": "AttentionLayer attention_layers record_attention",
        "components": "ComponentColours PatchColours Separation fit_colours patch_features separate_foreground",
        "looking": "SHEETS draw_sheets look",
        "recorded": "RecordedAttention ShiftedWindowAttention TokenAttention WindowAttention",
        "saliency": "grad_cam input_gradients integrated_gradients saliency_map smooth_gradients",
        "subject": "LookOptions NoSheetError Subject load_random prepare_subject",
    },
)
