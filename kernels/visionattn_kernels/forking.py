"""One thread in children made by fork: OpenMP's threads do not survive it, and whoever waits for them hangs.

That holds for the compiled kernels and for torch's own operators, which data-loader workers also run on one thread. A
child whose parent never ran anything on several threads may set their number again: `torch.set_num_threads`.
"""

import os

import torch


def run_serially_in_forked_children() -> None:
    """Set the number of torch's threads, which the kernels follow, to 1 in every child that is forked from now on."""
    if hasattr(os, "register_at_fork"):  # there is no fork on Windows
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
