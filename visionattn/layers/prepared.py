"""What modules compute from parameters alone: anew in training, once at evaluation."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which tensors keep their types."""
    # Where it is off, a trace is spared the context.
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


class Prepared(nn.Module):
    """A module that derives tensors from its parameters and buffers before it meets any input."""

    def __init__(self) -> None:
        """Keeps nothing yet."""
        super().__init__()
        self._kept: list[Tensor] | None = None
        self._kept_for: list[tuple[int, int]] = []
        self._constants: list[Tensor] | None = None

    def prepare(self) -> list[Tensor]:
        """Computes what depends on parameters and buffers alone."""
        raise NotImplementedError

    @torch.jit.ignore
    def sources(self) -> list[Tensor]:
        """The parameters and buffers of which `prepare` makes something."""
        return [*self.parameters(), *self.buffers()]

    def prepared(self) -> list[Tensor]:
        """What `prepare` gives; at evaluation it is kept until one of `sources` or the mode changes."""
        if torch.jit.is_scripting():
            return self.prepare()
        return self._keep()

    @torch.jit.unused
    def _keep(self) -> list[Tensor]:
        if self._constants is not None:
            return self._constants
        sources = self.sources()
        device = sources[0].device
        with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in sources)
        if self.training or with_gradient or torch.compiler.is_compiling():
            with without_autocast(device):
                return self.prepare()
        current = [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in sources]
        if self._kept is None or current != self._kept_for:
            # A tensor made in inference mode could not take part in a later computation of gradients.
            with torch.inference_mode(False), torch.no_grad(), without_autocast(device):
                self._kept, self._kept_for = self.prepare(), current
        return self._kept

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; what is kept is dropped."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._kept = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


@contextmanager
def prepared_as_constants(model: nn.Module) -> Iterator[None]:
    """Within it, all that modules of `model` prepare stays what it is, so that a graph that is traced has it as data.

    Otherwise a graph repeats the computation at every call, and another runtime in its own rounding, of which sines of
    the frequencies of Terminator's slow networks make another kernel.
    """
    modules = [module for module in model.modules() if isinstance(module, Prepared)]
    try:
        with torch.no_grad():
            for module in modules:
                with without_autocast(module.sources()[0].device):
                    # Files hold whole storages, of which these might be parts.
                    module._constants = [x.clone(memory_format=torch.contiguous_format) for x in module.prepare()]
        yield
    finally:
        for module in modules:
            module._constants = None
