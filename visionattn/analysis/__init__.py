"""Analysis of a model: attention, features and gradients on single images, and its attention heads on many.

`look` draws sheets of all of these. `record_attention` records the attention weights of `attention_layers`.
`fit_colours` finds the principal components of `patch_features`. `grad_cam`, `smooth_gradients` and
`integrated_gradients` explain the score of a class.

`head_layers` finds the heads of a model. `measure_scores`, `measure_copying`, `measure_effects`, `measure_direct` and
`measure_curves` say what they do and what is lost without them; `HeadStudy` is all of these on the same images.
`Replay` repeats a pass from a later block on.
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
    from visionattn.analysis.copying import measure_copying
    from visionattn.analysis.cues import CueStudy, SideCut, cut_sides, measure_cues
    from visionattn.analysis.direct import measure_direct
    from visionattn.analysis.effects import Effects, measure_effects, measure_set
    from visionattn.analysis.head_images import HeadBatch, HeadImages, open_head_images
    from visionattn.analysis.head_study import HeadStudy
    from visionattn.analysis.heads import (
        Head,
        HeadLayer,
        HeadValues,
        change_heads,
        choose_heads,
        head_layers,
        parse_heads,
        replace_heads,
    )
    from visionattn.analysis.looking import SHEETS, draw_sheets, look
    from visionattn.analysis.patching import Ablation, Unfinished, ablate, head_means, measure_ablations
    from visionattn.analysis.pruning import PruningCurve, measure_curves, order_heads, random_orders
    from visionattn.analysis.recorded import (
        RecordedAttention,
        ShiftedWindowAttention,
        TokenAttention,
        WindowAttention,
    )
    from visionattn.analysis.replay import Replay
    from visionattn.analysis.saliency import (
        grad_cam,
        input_gradients,
        integrated_gradients,
        saliency_map,
        smooth_gradients,
    )
    from visionattn.analysis.scores import measure_scores
    from visionattn.analysis.subject import LookOptions, NoSheetError, Subject, load_random, prepare_subject

__all__ = [
    "SHEETS", "Ablation", "AttentionLayer", "ComponentColours", "CueStudy", "Effects", "Head", "HeadBatch",
    "HeadImages", "HeadLayer", "HeadStudy", "HeadValues", "LookOptions", "NoSheetError", "PatchColours",
    "PruningCurve", "RecordedAttention", "Replay", "Separation", "ShiftedWindowAttention", "SideCut", "Subject",
    "TokenAttention", "Unfinished", "WindowAttention", "ablate", "attention_layers", "change_heads", "choose_heads",
    "cut_sides", "draw_sheets", "fit_colours", "grad_cam", "head_layers", "head_means", "input_gradients",
    "integrated_gradients", "load_random", "look", "measure_ablations", "measure_copying", "measure_cues",
    "measure_curves", "measure_direct", "measure_effects", "measure_scores", "measure_set", "open_head_images",
    "order_heads", "parse_heads", "patch_features", "prepare_subject", "random_orders", "record_attention",
    "replace_heads", "saliency_map", "separate_foreground", "smooth_gradients",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "patching": "Ablation Unfinished ablate head_means measure_ablations",
        "copying": "measure_copying",
        "cues": "CueStudy SideCut cut_sides measure_cues",
        "direct": "measure_direct",
        "effects": "Effects measure_effects measure_set",
        "head_images": "HeadBatch HeadImages open_head_images",
        "head_study": "HeadStudy",
        "heads": "Head HeadLayer HeadValues change_heads choose_heads head_layers parse_heads replace_heads",
        "pruning": "PruningCurve measure_curves order_heads random_orders",
        "replay": "Replay",
        "scores": "measure_scores",
        "attention": "AttentionLayer attention_layers record_attention",
        "components": "ComponentColours PatchColours Separation fit_colours patch_features separate_foreground",
        "looking": "SHEETS draw_sheets look",
        "recorded": "RecordedAttention ShiftedWindowAttention TokenAttention WindowAttention",
        "saliency": "grad_cam input_gradients integrated_gradients saliency_map smooth_gradients",
        "subject": "LookOptions NoSheetError Subject load_random prepare_subject",
    },
)
