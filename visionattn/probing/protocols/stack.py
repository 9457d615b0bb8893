"""Many heads on the same tokens, with their common products computed once.

Copies of efficient probing and of AIM's head share their products with the tokens (`shared.py`). All other heads run
side by side on the same batch. torch.func.vmap over stacked copies of these gives the same results, but on a CPU it was
slower for every head that does more than take a mean: it makes a copy of the tokens for each copy of the head.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

from torch import Tensor

from visionattn.probing.heads import ProbingHead, TokenKind, select_tokens
from visionattn.probing.protocols.shared import FAMILIES, TokenBatch, count_queries, shared_logits

MAX_QUERIES = 160
"""Approximate maximum of queries per product: more make `[B, queries, dim]` too large to be fast."""


class HeadStack:
    """Heads that are evaluated together; weights of heads that share products become slices of stacks."""

    def __init__(self, heads: Sequence[ProbingHead], num_prefix_tokens: int, num_reg_tokens: int) -> None:
        """Sort heads for the same tokens and classes by the products that they can share."""
        self.heads = list(heads)
        self._layout = num_prefix_tokens, num_reg_tokens
        self._shares = [
            (numbers, [FAMILIES[type(family[0].pool)](family) for family in self._families(numbers)])
            for numbers in _share(self.heads)
        ]
        self._others = [number for number, head in enumerate(heads) if not count_queries(head)]

    def train(self, mode: bool = True) -> None:
        """Set all heads to training or evaluation mode."""
        for head in self.heads:
            head.train(mode)

    def logits(self, tokens: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Classify images by all heads, a share at a time, so that memory is free again for the next share.

        Tokens are all that the backbone gives. Call backward before the next share is asked for: then parameters get
        their gradients.

        Yields:
            Which heads these are, L numbers, and their logits `[L, B, num_classes]`.
        """
        batches: dict[TokenKind, TokenBatch] = {}

        def batch(number: int) -> TokenBatch:
            kind = self.heads[number].tokens
            if kind not in batches:
                batches[kind] = TokenBatch(select_tokens(tokens, kind, *self._layout))
            return batches[kind]

        for numbers, families in self._shares:
            yield numbers, shared_logits(families, batch(numbers[0]))
            for family in families:
                family.hand_out_gradients()
        for number in self._others:
            yield [number], self.heads[number](batch(number).tokens)[None]

    def _families(self, numbers: Sequence[int]) -> Iterator[list[ProbingHead]]:
        for _, family in groupby((self.heads[number] for number in numbers), _form):
            yield list(family)


def _share(heads: Sequence[ProbingHead]) -> Iterator[list[int]]:
    """Yield the numbers of heads that share products: shares of similar size, heads of one form side by side."""
    sharing = sorted((i for i, head in enumerate(heads) if count_queries(head)), key=lambda i: _form(heads[i]))
    for _, group in groupby(sharing, lambda i: heads[i].tokens):
        numbers = list(group)
        ends = list(accumulate(count_queries(heads[number]) for number in numbers))
        size = ends[-1] / math.ceil(ends[-1] / MAX_QUERIES)
        shares = defaultdict(list)
        for number, end in zip(numbers, ends, strict=True):
            shares[math.ceil(end / size)].append(number)
        yield from shares.values()


def _form(head: ProbingHead) -> tuple[str, int, str, int]:
    """Return a key that is the same for heads that differ only in their weights."""
    return head.tokens, count_queries(head), type(head.pool).__name__, head.num_features
