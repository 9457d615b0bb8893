"""Near matches for names that do not exist."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggest(word: str, known: Iterable[str], count: int = 3) -> str:
    """Return ``"; did you mean a, b?"`` for up to ``count`` names that are spelt like ``word``, or "" if none is."""
    return did_you_mean(get_close_matches(word, sorted(set(known)), n=count))


def did_you_mean(names: Iterable[str]) -> str:
    """Return ``"; did you mean a, b?"``, or "" without names."""
    joined = ", ".join(names)
    return f"; did you mean {joined}?" if joined else ""
