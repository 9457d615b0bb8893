"""Modules whose parameters and buffers stay in float32 in a model of a half precision."""

from typing import Any

import torch
from torch import Tensor, nn


def at_least_single(dtype: torch.dtype | None) -> torch.dtype:
    """Return a type (None: the default one), or float32 in place of a half precision."""
    return torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)


class AtLeastSingle(nn.Module):
    """A module whose parameters and buffers do not become float16 or bfloat16; they move, and widen, with the model."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def apply(x: Tensor) -> Tensor:
            y = fn(x)
            if x.is_floating_point() and y.dtype in (torch.float16, torch.bfloat16):
                return x.to(y.device)
            return y

        return super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
