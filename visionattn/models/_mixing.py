"""The choice of a token mixer for each block of a stack."""

from collections.abc import Mapping, Sequence
from typing import Any

Mixer = str | Sequence[str]
"""Name of the mixer of all blocks, or names that blocks take in turn: `["taylor", "neighborhood"]` alternates."""

MixerOptions = Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None
"""Options of a mixer: one mapping for all blocks, or one per name of `mixer`."""


def block_mixers(mixer: Mixer, mixer_kwargs: MixerOptions, depth: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the options of the mixer of each of `depth` blocks.

    Raises:
        ValueError: no name is given, or there are several mappings and not as many as names.
    """
    names = [mixer] if isinstance(mixer, str) else list(mixer)
    if not names:
        raise ValueError("mixer must name at least one mixer")
    if mixer_kwargs is None or isinstance(mixer_kwargs, Mapping):
        options = [dict(mixer_kwargs or {})] * len(names)
    else:
        options = [dict(x or {}) for x in mixer_kwargs]
    if len(options) != len(names):
        raise ValueError(f"mixer_kwargs must be one mapping, or one per mixer, {len(names)}; got {len(options)}")
    return [(names[i % len(names)], options[i % len(names)]) for i in range(depth)]
