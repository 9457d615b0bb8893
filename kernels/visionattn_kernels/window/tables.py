"""The window rule of one axis as small integer tables, for kernels that walk dilation groups."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visionattn_kernels.device_tables import device_tables
from visionattn_kernels.window.rule import AxisWindow


@dataclass(frozen=True)
class AxisTables:
    """The rule of one axis written out as small integer tables, for kernels that walk dilation groups.

    A dilation group g holds the keys `g + dilation * m`, m in [0, keys[g]), and the queries
    `first_query[g] + query_step * n`, n in [0, queries[g]). Queries and keys below are counted inside their group.

    Attributes:
        query_step: Distance of neighbouring queries of one group.
        keys, queries, first_query: `[dilation]` see above.
        index: `[Q]` the query's own position, as a key of its group: table entries are `key - index + kernel_size - 1`.
        start, stop: `[Q]` the interval of keys that a query sees; never decreasing inside a group.
        query_start, query_stop: `[L]` the interval of queries that see a key, empty where none does: the rule inverted.
    """

    query_step: int
    keys: Tensor
    queries: Tensor
    first_query: Tensor
    index: Tensor
    start: Tensor
    stop: Tensor
    query_start: Tensor
    query_stop: Tensor


@device_tables
def tabulate_axis(axis: AxisWindow, length: int, device: torch.device) -> AxisTables:
    """Return the tables of an axis of `length` keys, int32 on `device`; cached."""
    group, index, group_length = axis.groups(length)
    start, stop = axis.interval(index, group_length)
    every_group = torch.arange(axis.dilation, device="cpu")
    member = group == every_group[:, None]  # [d, Q]
    # Starts and stops never decrease inside a group, so the queries that see a key are neighbours.
    query_start, query_stop = torch.empty(2, length, dtype=torch.long, device="cpu")
    for g in range(min(axis.dilation, length)):
        keys = torch.arange((length - g + axis.dilation - 1) // axis.dilation, device="cpu")
        query_start[g :: axis.dilation] = torch.searchsorted(stop[member[g]], keys, right=True)
        query_stop[g :: axis.dilation] = torch.searchsorted(start[member[g]], keys, right=True)
    tables = {
        "keys": (length - every_group + axis.dilation - 1) // axis.dilation,
        "queries": member.sum(1),
        "first_query": member.long().argmax(1),
        "index": index,
        "start": start,
        "stop": stop,
        "query_start": query_start,
        "query_stop": query_stop,
    }
    return AxisTables(
        axis.dilation // math.gcd(axis.dilation, axis.query_stride),
        **{name: x.to(device, torch.int32) for name, x in tables.items()},
    )
