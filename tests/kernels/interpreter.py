"""Whether Triton's interpreter can run the kernels here."""

import numpy as np

from visionattn_kernels.attention import triton as backend
from visionattn_kernels.attention.devices import TRITON_INSTALLED


def find_reason() -> str | None:
    """Return why it cannot, None if it can."""
    if not TRITON_INSTALLED:
        return "triton is not installed"
    import triton

    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        return "the interpreter of Triton 3.6 fails with NumPy 2.4"
    return None if backend.INTERPRETED else "TRITON_INTERPRET is not set"


NOT_INTERPRETED = find_reason()
