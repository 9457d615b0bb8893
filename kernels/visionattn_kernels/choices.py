"""The measured tables of which backend is fastest, read from `choices.json`, and the rule that a problem falls under.

Per type of device the file holds rules, the first of which that fits a problem says in what order its backends are
tried, beside where these come from: whether they were measured, by which command, on what hardware and versions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionattn_kernels.problem import Problem

FILE = Path(__file__).with_name("choices.json")
OTHER = "other"
"""The table of device types that have none."""


@dataclass(frozen=True)
class Rule:
    """An order of backends and what it holds for; a condition that is None holds for every problem.

    Attributes:
        order: Names of backends, the preferred one first.
        because: Why.
        device: Type of device.
        measured: Whether the order is that of measured times.
        max_keys: Maps of at most so many keys.
        dtypes: Names of the dtypes of q.
        needs_grad: Whether autograd records the problem.
    """

    order: tuple[str, ...]
    because: str
    device: str
    measured: bool
    max_keys: int | None = None
    dtypes: tuple[str, ...] | None = None
    needs_grad: bool | None = None

    def fits(self, problem: Problem) -> bool:
        """Whether all conditions hold."""
        height, width = problem.size
        return (
            (self.max_keys is None or height * width <= self.max_keys)
            and (self.dtypes is None or str(problem.q.dtype).removeprefix("torch.") in self.dtypes)
            and (self.needs_grad is None or problem.needs_grad == self.needs_grad)
        )

    def __str__(self) -> str:
        """Names the rule in one line."""
        conditions = [
            *([] if self.max_keys is None else [f"up to {self.max_keys} keys"]),
            *([] if self.dtypes is None else [" or ".join(self.dtypes)]),
            *([] if self.needs_grad is None else [f"{'with' if self.needs_grad else 'without'} gradients"]),
        ]
        for_what = ", ".join([self.device, *conditions])
        return f"the {'measured' if self.measured else 'unmeasured'} order for {for_what}: {self.because}"


def read(tables: dict[str, Any]) -> dict[str, tuple[Rule, ...]]:
    """The rules of each device type, from the contents of `choices.json`."""
    found: dict[str, tuple[Rule, ...]] = {}
    for device, table in tables.items():
        rules = []
        for fields in table["rules"]:
            lists = {name: tuple(fields[name]) for name in ("order", "dtypes") if name in fields}
            rules.append(Rule(**{**fields, **lists}, device=device, measured=table["measured"]))
        found[device] = tuple(rules)
    return found


RULES = read(json.loads(FILE.read_text(encoding="utf-8")))
"""By type of device."""


def find(problem: Problem) -> Rule:
    """The first rule that fits; the last one of each device type fits everything."""
    for rule in RULES.get(problem.q.device.type, RULES[OTHER]):
        if rule.fits(problem):
            return rule
    raise AssertionError(f"{FILE.name} has no rule without conditions for {problem.q.device.type}")
