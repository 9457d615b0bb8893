"""Many heads on the same tokens: what they have in common is computed once.

Copies of efficient probing and of AIM's head share their products with the tokens (`shared.py`). All other heads run
side by side on the same batch. For these, torch.func.vmap over stacked copies gives the same results and is slower on a
CPU: 1.1 to 4 times, by head, with 5 copies at B 256, N 64 and D 192, as it copies the tokens for every copy.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import Tensor

from visionattn.probing.heads import ProbingHead, TokenKind, select_tokens
from visionattn.probing.protocols.shared import TokenBatch, count_queries, shared_logits

MAX_QUERIES = 160
"""Queries per product: more gain nothing, and what they pool, `[B, queries, dim]`, takes memory."""


class HeadStack:
    """Heads that are evaluated together; parameters and buffers stay their own.

    Attributes:
        heads: The heads.
    """

    def __init__(self, heads: Sequence[ProbingHead], num_prefix_tokens: int, num_reg_tokens: int) -> None:
        """Sorts heads by what they can share.

        Args:
            heads: Heads for tokens of the same width and for the same classes.
            num_prefix_tokens: Tokens before the patches.
            num_reg_tokens: How many of these are registers.
        """
        self.heads = list(heads)
        self._layout = num_prefix_tokens, num_reg_tokens
        self._shares = list(_share(self.heads))

    def train(self, mode: bool = True) -> None:
        """Puts all heads in training mode, or in that for evaluation."""
        for head in self.heads:
            head.train(mode)

    def logits(self, tokens: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Classifies pictures by all heads; a share at a time, so that the next one finds its memory free again.

        Args:
            tokens: `[B, num_prefix_tokens + N, dim]`, all that the backbone gives.

        Yields:
            Which heads these are, L numbers, and their logits `[L, B, num_classes]`.
        """
        batches: dict[TokenKind, TokenBatch] = {}
        for numbers in self._shares:
            heads = [self.heads[number] for number in numbers]
            kind = heads[0].tokens
            if kind not in batches:
                batches[kind] = TokenBatch(select_tokens(tokens, kind, *self._layout))
            if count_queries(heads[0]):
                yield numbers, shared_logits([list(family) for _, family in groupby(heads, _form)], batches[kind])
            else:
                yield numbers, heads[0](batches[kind].tokens)[None]


def _share(heads: Sequence[ProbingHead]) -> Iterator[list[int]]:
    """Numbers of the heads that share products with the tokens, and of each other head."""
    share: list[int] = []
    room, kind = 0, None
    for number in sorted((i for i, head in enumerate(heads) if count_queries(head)), key=lambda i: _form(heads[i])):
        head = heads[number]
        if share and (count_queries(head) > room or head.tokens != kind):
            yield share
            share = []
        if not share:
            room, kind = MAX_QUERIES, head.tokens
        share.append(number)
        room -= count_queries(head)
    if share:
        yield share
    yield from ([number] for number, head in enumerate(heads) if not count_queries(head))


def _form(head: ProbingHead) -> tuple[str, int, str, int]:
    """What heads have in common that differ in nothing but their weights."""
    return head.tokens, count_queries(head), type(head.pool).__name__, head.num_features
