"""How many threads a kernel takes: none but its own in a child made by fork.

OpenMP's threads do not survive a fork, and whoever waits for them in the child hangs: our kernels, and torch itself.
"""

from __future__ import annotations

import os

import torch

_is_forked = False


def num_threads() -> int:
    """Threads of one call of a compiled kernel."""
    return 1 if _is_forked else torch.get_num_threads()


def _run_serially() -> None:
    global _is_forked
    _is_forked = True
    torch.set_num_threads(1)  # torch's own operators, too, as in its data-loader workers


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_run_serially)
