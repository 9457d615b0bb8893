"""Tensors that modules compute from their parameters alone, as Terminator's hyper-kernels are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from visionattn_kernels.tracing import without_autocast


class Prepared(nn.Module):
    """A module that derives tensors from its parameters and buffers before it meets any input.

    It does so at every call. Nothing could be kept safely: a change through `.data`, a NumPy view or inference mode
    leaves no trace in a tensor. `frozen_weights` keeps the tensors for a caller who guarantees that nothing changes.
    """

    def __init__(self) -> None:
        """Start without kept tensors."""
        super().__init__()
        self._kept: list[Tensor] | None = None
        self.register_load_state_dict_pre_hook(_forget)  # type: ignore[no-untyped-call]

    def prepare(self) -> list[Tensor]:
        """Compute what depends on parameters and buffers alone."""
        raise NotImplementedError

    def prepared(self) -> list[Tensor]:
        """Return what `prepare` gives, computed in the precision of the parameters."""
        if self._kept is not None and not (torch.is_grad_enabled() and any(x.requires_grad for x in self.parameters())):
            return self._kept
        with without_autocast(next(self.parameters()).device):
            return self.prepare()

    def keep(self) -> None:
        """Keep the current tensors for all calls, except those that need gradients of parameters."""
        self.forget()
        # A tensor made in inference mode could not take part in a later computation of gradients. A graph's file holds
        # whole storages, of which a view would be a part.
        with torch.inference_mode(False), torch.no_grad():
            self._kept = [x.clone(memory_format=torch.contiguous_format) for x in self.prepared()]

    def forget(self) -> None:
        """Compute the tensors at every call again."""
        self._kept = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode, on which the tensors may depend."""
        self.forget()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.forget()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the kept tensors: the weights of a copy may change."""
        return {**self.__dict__, "_kept": None}


def _forget(module: nn.Module, *_: Any) -> None:
    assert isinstance(module, Prepared)
    module.forget()


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Let a model compute only once what depends on its weights alone, such as Terminator's kernels.

    The caller must not change parameters or buffers within the context; a change in place has no effect there.
    A new mode, a loaded state dict or a move to another device or type ends this early. Where gradients of parameters
    are wanted, tensors are computed as usual. A graph that is traced holds the tensors as data. Otherwise another
    runtime would compute them in its own rounding, and sines of the frequencies of Terminator's slow networks would
    make another kernel.

    Args:
        model: Any module; models without such tensors are left as they are.
    """
    modules = [module for module in model.modules() if isinstance(module, Prepared)]
    try:
        for module in modules:
            module.keep()
        yield
    finally:
        for module in modules:
            module.forget()


prepared_as_constants = frozen_weights
"""The name of `frozen_weights` in version 0.1.0."""
