"""Property tests: by default on a few drawn cases, always the same; with ``-m slow`` on many."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

PROFILE = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def holds_for(*strategies: Any, few: int = 20, many: int = 300) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test from a function that checks one drawn case.

    Args:
        *strategies: Hypothesis' strategies of its arguments.
        few: Cases of the default run.
        many: Cases of the test that is marked slow.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("cases", [few, pytest.param(many, marks=pytest.mark.slow)], ids=["few", "many"])
        def test(cases: int) -> None:
            settings(PROFILE, max_examples=cases)(given(*strategies)(check))()

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        return test

    return decorate
