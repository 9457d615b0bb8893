"""The choice of a token mixer for each block of a stack."""

from collections.abc import Mapping, Sequence
from typing import Any

from visionattn.layers.mixers import check_mixer, check_options

Mixer = str | Sequence[str]
"""Name of the mixer of all blocks, or names that blocks take in turn: `["taylor", "neighborhood"]` alternates."""

MixerOptions = Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None
"""Options of a mixer: one mapping for all blocks, or one per name of `mixer`."""


def block_mixers(mixer: Mixer, mixer_kwargs: MixerOptions, depth: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the options of the mixer of each of `depth` blocks.

    Raises:
        ValueError: `mixer` is not the name of a mixer or a list of names, `mixer_kwargs` is not a mapping or one
            mapping per name, or a mixer has no such option.
    """
    names: list[Any] = list(mixer) if isinstance(mixer, list | tuple) else [mixer]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"mixer must be a name or a list of names; got {mixer!r}")
    for name in names:  # also those that no block takes
        check_mixer(name)
    options: list[Any] = list(mixer_kwargs) if isinstance(mixer_kwargs, list | tuple) else [mixer_kwargs] * len(names)
    if not all(x is None or isinstance(x, Mapping) for x in options):
        raise ValueError(f"mixer_kwargs must be a mapping, or a list of one mapping per mixer; got {mixer_kwargs!r}")
    if len(options) != len(names):
        raise ValueError(f"mixer_kwargs must be one mapping, or one per mixer, {len(names)}; got {len(options)}")
    found = [(name, dict(given or {})) for name, given in zip(names, options, strict=True)]
    for name, given in found:
        try:
            check_options(name, given)
        except ValueError as error:
            if len(names) == 1 or not isinstance(mixer_kwargs, Mapping):
                raise
            raise ValueError(
                f"{error}. For several mixers, mixer_kwargs can be a list with the options of each"
            ) from error
    return [found[i % len(found)] for i in range(depth)]
