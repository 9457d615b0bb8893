"""Options of several values: lists, which may be written with commas."""

from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jsonargparse.typing import register_type

NAMES = {str: "a word", int: "an integer", float: "a number"}


def accept_commas(action: Any) -> None:
    """Let an option of type ``list`` also take its values separated by commas, or a single one; a word counts once."""
    hint = getattr(action, "_typehint", None)  # private: jsonargparse has no public way to read or change a type
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    items = get_args(kinds[0])
    if len(kinds) > 1 or get_origin(kinds[0]) is not list:
        return
    items = get_args(items[0]) or items
    if all(item in (str, int, float) or get_origin(item) is Literal for item in items):
        # Of jsonargparse's types, those that derive from str have their name alone in the help.
        action._typehint = type(f"list[{' | '.join(map(_name, items))}]", (str,), {})
        register_type(
            action._typehint, lambda values: values, _reader(items), type_check=lambda value, _: value is None
        )


def _reader(items: tuple[Any, ...]) -> Callable[[Any], list[Any]]:
    def read(values: Any) -> list[Any]:
        words = values.split(",") if isinstance(values, str) else values if isinstance(values, list) else [values]
        words = [word.strip() if isinstance(word, str) else word for word in words]
        found = [_convert(word, items) for word in words if word != ""]
        if not found:
            raise ValueError("give at least one value; separate several values by commas")
        return list(dict.fromkeys(found)) if isinstance(found[0], str) else found  # numbers may be equal, as in a mean

    return read


def _convert(word: Any, items: tuple[Any, ...]) -> Any:
    for item in items:
        if get_origin(item) is Literal and word in get_args(item):
            return word
        if item in (str, int, float) and not (item is int and isinstance(word, float)):
            try:
                return item(word)
            except (TypeError, ValueError):
                continue
    wanted = " or ".join(NAMES.get(item, _name(item)) for item in items)
    raise ValueError(f"{word!r} is not {wanted}; separate several values by commas")


def _name(item: Any) -> str:
    return ", ".join(map(repr, get_args(item))) or item.__name__
