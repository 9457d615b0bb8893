"""Requests for heads: by name, with options, checked once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from visionattn.errors import UserError
from visionattn.probing.classifier import head_tokens
from visionattn.probing.frozen import Layer, TokenLayout
from visionattn.probing.heads import ProbingHead, create_head, list_heads
from visionattn.probing.heads.registry import find_head
from visionattn.probing.protocols import HeadResult, knn, logistic_regression, ridge
from visionattn.suggestions import suggest

FITTED: dict[str, Callable[..., HeadResult]] = {"knn": knn, "ridge": ridge, "logistic": logistic_regression}
"""Protocols that fit pooled vectors; all other heads are trained by steps."""

_KNOWN = [*list_heads(), *FITTED]


@dataclass(frozen=True)
class HeadRequest:
    """A head by its name, with options.

    Attributes:
        name: A head of `list_heads()`, ep_M, knn, ridge or logistic.
        options: Options of `create_head`; knn, ridge and logistic have none.

    Raises:
        UserError: There is no such head, or it takes no options.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.is_fitted:
            if self.options:
                given = ", ".join(self.options)
                raise UserError(f"--head_options.{self.name}: {self.name} takes no options, got {given}; leave it out")
            return
        try:
            find_head(self.name)
        except ValueError as error:
            hint = suggest(self.name, _KNOWN) or f"; there are {', '.join(_KNOWN)} and every ep_M"
            raise UserError(f"no head is named {self.name!r}{hint}") from error

    @property
    def is_fitted(self) -> bool:
        """True if the head is fitted to pooled vectors, not trained by steps."""
        return self.name in FITTED

    @property
    def needs_tokens(self) -> bool:
        """True if the head needs tokens, not only pooled vectors."""
        return not self.is_fitted and not find_head(self.name)[0].takes_mean

    def on(self, layouts: Sequence[TokenLayout]) -> "HeadRequest":
        """Return the request for tokens of these layouts: with ``num_tokens``, for heads with a position per token."""
        if self.is_fitted or "num_tokens" not in find_head(self.name)[0].options:
            return self
        rows, columns = layouts[0].grid
        num_tokens = rows * columns + (self.options.get("tokens") == "all")
        return replace(self, options={**self.options, "num_tokens": self.options.get("num_tokens", num_tokens)})

    def create(self, layouts: Sequence[TokenLayout], num_classes: int) -> ProbingHead:
        """Create the head and show it tokens of these layouts.

        Raises:
            ValueError: The head does not fit.
        """
        head = create_head(self.name, sum(layout.dim for layout in layouts), num_classes, **self.options).eval()
        with torch.no_grad():
            head(head_tokens(head, [(torch.zeros(1, layout.num_tokens, layout.dim), layout) for layout in layouts]))
        return head


def request_heads(
    heads: Sequence[str | HeadRequest], options: Mapping[str, Mapping[str, Any]] | None = None
) -> list[HeadRequest]:
    """Return requests for heads, each of them once, with options by their names.

    Raises:
        UserError: No head, an unknown one, or options of a head that is not named or takes none.
    """
    if not heads:
        raise UserError(f"heads name nothing: give one or more of {', '.join(_KNOWN)}")
    options, requests = options or {}, {}
    for head in heads:
        request = head if isinstance(head, HeadRequest) else HeadRequest(head, dict(options.get(head, {})))
        requests[request.name] = request
    if unused := [name for name in options if name not in requests]:
        raise UserError(f"--head_options.{unused[0]} is for none of the heads {', '.join(requests)}: leave it out")
    return list(requests.values())


@dataclass(frozen=True)
class LayerPlan:
    """Heads for layers whose features lie side by side."""

    layers: tuple[Layer, ...]
    heads: tuple[HeadRequest, ...]

    @property
    def trained(self) -> list[tuple[str, dict[str, Any]]]:
        """Names and options of the heads that are trained by steps."""
        return [(head.name, dict(head.options)) for head in self.heads if not head.is_fitted]


@dataclass(frozen=True)
class ProbingPlan:
    """Work of a session, checked against backbone and data; without `with_tokens` pooled vectors are enough."""

    layers: tuple[LayerPlan, ...]
    with_tokens: bool
