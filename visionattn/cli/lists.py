"""Options that are lists: ``list[int]``, ``list[float]`` and ``list[str]`` also take values separated by commas."""

from typing import Any, Union, get_args, get_origin

from jsonargparse.typing import register_type


def accept_commas(action: Any) -> None:
    """Let an option of a list take ``3,7,11``, and a single value, on the command line and in config files."""
    hint = getattr(action, "_typehint", None)
    kinds = [_LISTS.get(str(kind), kind) for kind in (get_args(hint) if get_origin(hint) is not list else [hint])]
    if any(kind in _LISTS.values() for kind in kinds):
        action._typehint = Union[tuple(kinds)]  # noqa: UP007  of types that are known only here


def _register(name: str, kind: type) -> type:
    """Make a type for jsonargparse that reads a list of ``kind``."""

    def read(value: Any) -> list[Any]:
        if isinstance(value, str):
            value = list(dict.fromkeys(filter(None, (word.strip() for word in value.split(",")))))
        values = value if isinstance(value, list | tuple) else [value]
        if not values or not all(type(each) in (str, int, kind) for each in values):
            raise ValueError(f"{value} are no {name}" if values else "it names nothing")
        return [kind(each) for each in values]

    def is_list(value: Any, _: type) -> bool:
        return isinstance(value, list) and all(type(each) is kind for each in value)

    made = type(name, (list,), {})
    register_type(made, list, read, type_check=is_list)
    return made


_LISTS = {
    str(list[kind]): _register(name, kind) for name, kind in {"integers": int, "numbers": float, "words": str}.items()
}
