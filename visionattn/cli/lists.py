"""Options that are lists: of words, numbers or layers, which may also be given as values separated by commas."""

from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse.typing import register_type


def accept_commas(action: Any) -> None:
    """Let an option of a list take ``3,7,11``, and a single value, on the command line and in config files."""
    hint = getattr(action, "_typehint", None)
    kinds = [_LISTS.get(str(kind), kind) for kind in (get_args(hint) if get_origin(hint) is not list else [hint])]
    if any(kind in _LISTS.values() for kind in kinds):
        action._typehint = Union[tuple(kinds)]  # noqa: UP007  of types that are known only here


def _register(name: str, convert: Callable[[Any], Any], *kinds: type) -> type:
    """Make a type for jsonargparse that reads a list of values of these kinds."""

    def read(value: Any) -> list[Any]:
        if isinstance(value, str):
            value = list(dict.fromkeys(filter(None, (word.strip() for word in value.split(",")))))
        values = value if isinstance(value, list | tuple) else [value]
        if not values or not all(type(each) in (str, int, *kinds) for each in values):
            raise ValueError(f"{value} are no {name}" if values else "it names nothing")
        return [convert(each) for each in values]

    def is_list(value: Any, _: type) -> bool:
        return isinstance(value, list) and all(type(each) in kinds for each in value)

    made = type(name, (list,), {})
    register_type(made, list, read, type_check=is_list)
    return made


_LISTS = {
    str(list[int]): _register("integers", int, int),
    str(list[float]): _register("numbers", float, float),
    str(list[str]): _register("words", str, str),
    str(list[int | Literal["last"]]): _register(
        "integers or last", lambda value: value if value == "last" else int(value), int, str
    ),
}
