"""Analysis of a model on single images: attention, features, gradients.

`look` draws sheets of all of these. `record_attention` records the attention weights of `attention_layers`.
"""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.analysis.attention import AttentionLayer, attention_layers, record_attention
    from visionattn.analysis.looking import SHEETS, draw_sheets, look
    from visionattn.analysis.recorded import (
        RecordedAttention,
        ShiftedWindowAttention,
        TokenAttention,
        WindowAttention,
    )
    from visionattn.analysis.subject import LookOptions, NoSheetError, Subject, load_random, prepare_subject

__all__ = [
    "SHEETS", "AttentionLayer", "LookOptions", "NoSheetError", "RecordedAttention", "ShiftedWindowAttention", "Subject",
    "TokenAttention", "WindowAttention", "attention_layers", "draw_sheets", "load_random", "look", "prepare_subject",
    "record_attention",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "attention": "AttentionLayer attention_layers record_attention",
        "looking": "SHEETS draw_sheets look",
        "recorded": "RecordedAttention ShiftedWindowAttention TokenAttention WindowAttention",
        "subject": "LookOptions NoSheetError Subject load_random prepare_subject",
    },
)
