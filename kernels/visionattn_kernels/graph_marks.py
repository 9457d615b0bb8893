"""Marks the functions of `graph_constants` for the compiler, when it is imported."""

import torch

from visionattn_kernels.graph_constants import FUNCTIONS

for function in FUNCTIONS:
    torch.compiler.assume_constant_result(function)
