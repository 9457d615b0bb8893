"""Names of heads."""

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
    """What a name stands for.

    Attributes:
        pooling: Class of its pooling.
        tokens: Kinds of tokens that it can take, the usual one first.
        batch_norm: Whether features are normalised before they are classified.
    """

    pooling: type[Pooling]
    tokens: tuple[TokenKind, ...] = ("patches", "all")
    batch_norm: bool = True


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
    """Names of all heads; ep_32 stands for every ep_M whose M divides the width of the features."""
    return list(HEADS)


def create_head(
    name: str, dim: int, num_classes: int, *, tokens: TokenKind | None = None, **options: Any
) -> ProbingHead:
    """Creates a head by its name.

    "cls", "gap" and "linear" are batch norm and a linear layer on the class token, on the mean patch, and on the class
    token where the backbone has one, else on the mean patch. "ep_M" is efficient probing with M queries. The others
    are named after the papers that they come from.

    Args:
        name: One of `list_heads()`, or "ep_M" with another M.
        dim: Width of the tokens.
        num_classes: Classes.
        tokens: Which tokens the head is to take, see `select_tokens`; None for what is usual, which is patches. Most
            heads also take "all".
        **options: Of its pooling: `d_out` of ep_M, `num_heads` of heads with several, `num_tokens` of clip, and so on.

    Returns:
        The head, in training mode.

    Raises:
        ValueError: There is no such head, or it cannot be made with these options.
    """
    entry, of_name = _find(name)
    for what, value in (("dim", dim), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{what} must be at least 1; got {value}")
    kind = entry.tokens[0] if tokens is None else tokens
    if kind not in entry.tokens:
        raise ValueError(f"head {name} takes tokens {' or '.join(map(repr, entry.tokens))}; got {kind!r}")
    known = inspect.signature(entry.pooling).parameters.keys() - {"dim", *of_name}
    for option in options:
        if option not in known:
            takes = f"the options {', '.join(sorted(known))}" if known else "no options"
            raise ValueError(f"head {name} takes {takes}; got {option!r}{suggest(option, known)}")
    pool = entry.pooling(dim, **of_name, **options)
    return ProbingHead(pool, dim, num_classes, kind, entry.batch_norm)


def _find(name: str) -> tuple[Entry, dict[str, int]]:
    """What a name stands for, and options that are part of it."""
    if match := re.fullmatch(r"ep_(\d+)", name):
        return HEADS["ep_32"], {"num_queries": int(match[1])}
    if name not in HEADS:
        raise ValueError(
            f"no head is named {name!r}{suggest(name, HEADS)}; there are {', '.join(HEADS)} and every ep_M"
        )
    return HEADS[name], {}
