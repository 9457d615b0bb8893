"""Heads by name."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from visionattn.probing.heads.base import Pooling, ProbingHead, TokenKind
from visionattn.probing.heads.blocks import AbmilpPooling, CaitPooling, DinoVitPooling, JepaPooling, SiglipPooling
from visionattn.probing.heads.gated import CbamPooling, DelfPooling, DolgPooling, GemPooling
from visionattn.probing.heads.queries import (
    AimPooling,
    CaePooling,
    CapiPooling,
    ClipPooling,
    CocaPooling,
    EfficientProbing,
    MeanPooling,
    SimPooling,
)
from visionattn.suggestions import suggest


@dataclass(frozen=True)
class Entry:
    """A kind of head.

    Attributes:
        pooling: Class of the pooling.
        tokens: Kinds of tokens that the head can take, the usual one first.
        batch_norm: Whether features are normalised before they are classified.
    """

    pooling: type[Pooling]
    tokens: tuple[TokenKind, ...] = ("patches", "all")
    batch_norm: bool = True

    @property
    def takes_mean(self) -> bool:
        """True if the head takes the mean of its tokens, so that pooled vectors are enough."""
        return self.pooling is MeanPooling

    @property
    def options(self) -> set[str]:
        """Names of the pooling's options."""
        return set(inspect.signature(self.pooling).parameters) - {"dim"}


HEADS = {
    "linear": Entry(MeanPooling, ("cls_or_patches",)),
    "cls": Entry(MeanPooling, ("cls",)),
    "gap": Entry(MeanPooling, ("patches",)),
    "ep_32": Entry(EfficientProbing),
    "abmilp": Entry(AbmilpPooling),
    "aim": Entry(AimPooling),
    "cae": Entry(CaePooling),
    "cait": Entry(CaitPooling),
    "capi": Entry(CapiPooling, batch_norm=False),
    "cbam": Entry(CbamPooling, ("patches",)),
    "clip": Entry(ClipPooling),
    "coca": Entry(CocaPooling),
    "delf": Entry(DelfPooling),
    "dinovit": Entry(DinoVitPooling),
    "dolg": Entry(DolgPooling),
    "gem": Entry(GemPooling),
    "jepa": Entry(JepaPooling),
    "siglip": Entry(SiglipPooling),
    "simpool": Entry(SimPooling),
}


def list_heads() -> list[str]:
    """Return the names of all heads; ep_32 stands for every ep_M whose M divides the width of the features."""
    return list(HEADS)


def create_head(
    name: str, dim: int, num_classes: int, *, tokens: TokenKind | None = None, **options: Any
) -> ProbingHead:
    """Create a head by its name.

    "cls", "gap" and "linear" are batch norm and a linear layer: on the class token, on the mean patch, and on the class
    token if the backbone has one, else on the mean patch. "ep_M" is efficient probing with M queries. Other heads are
    named after their papers.

    Args:
        name: One of `list_heads()`, or "ep_M" with another M.
        dim: Width of the tokens.
        num_classes: Classes.
        tokens: Which tokens the head takes, see `select_tokens`; None for the usual ones, patches. Most heads also take
            "all".
        **options: Options of the pooling: `d_out` of ep_M, `num_heads`, `num_tokens` of clip, …

    Returns:
        The head, in training mode.

    Raises:
        ValueError: There is no such head, or it cannot be made with these options.
    """
    entry, of_name = find_head(name)
    for what, value in (("dim", dim), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{what} must be at least 1; got {value}")
    kind = entry.tokens[0] if tokens is None else tokens
    if kind not in entry.tokens:
        raise ValueError(f"head {name} takes tokens {' or '.join(map(repr, entry.tokens))}; got {kind!r}")
    known = entry.options - of_name.keys()
    for option in options:
        if option not in known:
            takes = f"the options {', '.join(sorted(known))}" if known else "no options"
            raise ValueError(f"head {name} takes {takes}; got {option!r}{suggest(option, known)}")
    pool = entry.pooling(dim, **of_name, **options)
    return ProbingHead(pool, dim, num_classes, kind, entry.batch_norm)


def find_head(name: str) -> tuple[Entry, dict[str, int]]:
    """Return the kind of a head, and the options that are part of its name.

    Raises:
        ValueError: There is no such head.
    """
    if match := re.fullmatch(r"ep_(\d+)", name):
        return HEADS["ep_32"], {"num_queries": int(match[1])}
    if name not in HEADS:
        hint = suggest(name, HEADS) or f"; there are {', '.join(HEADS)} and every ep_M"
        raise ValueError(f"no head is named {name!r}{hint}")
    return HEADS[name], {}
