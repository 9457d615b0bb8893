"""Old place of `visionattn.training.preprocessing`."""

from visionattn.training.preprocessing import (
    KEYS,
    adapt_preprocessing,
    describe_preprocessing,
    differing_keys,
    model_preprocessing,
)

__all__ = ["KEYS", "adapt_preprocessing", "describe_preprocessing", "differing_keys", "model_preprocessing"]
