"""A candidate in training."""

import math
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from visionattn.probing.protocols.candidates import Candidate

Head = TypeVar("Head", bound=nn.Module)


@dataclass(eq=False)
class Trial(Generic[Head]):
    """A candidate in training.

    Attributes:
        candidate: Head and rate.
        best: Weights of the best epoch (of the last one, if epochs are not judged); at first the initial weights.
        best_epoch: Number of that epoch, counted from 1.
        best_accuracy: Top-1 (of segmentation, mean IoU) after that epoch, where choices are made.
        losses: Mean training loss of each epoch.
        seconds: Wall time of its epochs.
    """

    candidate: Candidate
    head: Head
    best: dict[str, Tensor] = field(init=False)
    best_epoch: int = 0
    best_accuracy: float = 0.0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False

    def __post_init__(self) -> None:
        self.best = self._weights()

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the head."""
        return sum(parameter.numel() for parameter in self.head.parameters())

    def note(self, loss: float, accuracy: float | None, seconds: float, patience: int | None) -> None:
        """Record an epoch; stop if the loss is not finite, or after `patience` epochs without a better accuracy.

        Without an accuracy, each epoch counts as better than the one before.
        """
        self.losses.append(loss)
        self.seconds += seconds
        epoch = len(self.losses)
        if not math.isfinite(loss):
            self.stopped = True
        elif not self.best_epoch or accuracy is None or accuracy > self.best_accuracy:
            self.best, self.best_epoch, self.best_accuracy = self._weights(), epoch, accuracy or 0.0
        elif patience is not None and epoch - self.best_epoch >= patience:
            self.stopped = True

    def state(self) -> dict[str, Any]:
        """Return the state for `load`: tensors and plain values."""
        progress = {name: value for name, value in vars(self).items() if name not in ("candidate", "head")}
        return progress | {"weights": self._weights()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.head.load_state_dict(state["weights"])
        vars(self).update({name: value for name, value in state.items() if name != "weights"})

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.to("cpu", copy=True) for name, value in self.head.state_dict().items()}
