"""Config files: the shipped ones, files based on others, and where each setting stands."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

OPTIONS = ("--config", "-c")
BASE = "base"
"""Key of a config file that names the file whose settings it starts from."""
PACKAGE = Path(__file__).parents[1]


def given_options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each word of a command line with its value if it is an option: ``--a=b`` or ``--a b``."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        yield option, value if equals else following


def shipped_configs() -> Path:
    """Return the folder of the shipped configs: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def find_config(name: str) -> str:
    """Return the file that ``--config`` names: an existing file, or a shipped config.

    ``configs/cifar10/nat.yaml`` and ``cifar10/nat`` name the same shipped config. Any other name is returned unchanged.
    """
    return name if Path(name).exists() else _find_shipped(name) or name


def _find_shipped(name: str) -> str:
    path = shipped_configs() / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return str(path) if path.is_file() else ""


def find_configs(argv: Sequence[str]) -> list[str]:
    """Return a command line with the file of each config in place of its name."""
    found: list[str] = []
    for word in argv:
        option, equals, value = word.partition("=")
        if option in OPTIONS and equals:
            word = f"{option}={find_config(value)}"
        elif found and found[-1] in OPTIONS:
            word = find_config(word)
        found.append(word)
    return found


def named_configs(argv: Sequence[str]) -> list[str]:
    """Return the config files that a command line names, in order."""
    return [value for option, value in given_options(argv) if option in OPTIONS]


def read_config(path: str) -> dict[str, Any]:
    """Return the settings of a config file and of the files it is based on.

    Raises:
        ValueError: the file is missing, is not YAML in UTF-8, repeats a key, asks for Python objects, holds no settings
            by name, or is based on itself.
    """
    if not path:
        raise ValueError("--config takes the name of a file")
    if not Path(path).exists():
        raise ValueError(
            f"no config file {path}: --config takes a file, or a shipped config such as quickstart or cifar10/nat "
            f"({shipped_configs()} holds them all)"
        )
    return yaml.safe_load(config_text(path)) if Path(path).is_file() else {}


def config_text(path: str) -> str:
    """Return the settings of a config file and of the files it is based on, as YAML; see `read_config` for errors."""
    return yaml.serialize(_compose(path), Dumper=yaml.SafeDumper, allow_unicode=True)


def place_of(path: str, option: str) -> str:
    """Return the file and line that set an option such as ``data.batch_size``, or ""."""
    try:
        node: yaml.Node = _compose(path)
    except (OSError, ValueError):
        return ""
    place = ""
    for key in option.split("."):
        found = next((pair for pair in _pairs(node) if pair[0].value == key), None)
        if found is None:
            return ""
        place, node = _place(found[0]), found[1]
    return place


def _compose(path: str, above: tuple[Path, ...] = ()) -> yaml.MappingNode:
    """Return the nodes of a config file over those of its base: sections are merged, anything else is replaced."""
    node = _read(path)
    found = next((pair for pair in node.value if pair[0].value == BASE), None)
    if found is None:
        return node
    node.value.remove(found)
    place, name = _place(found[0]), found[1].value
    if not name or not isinstance(name, str):
        raise ValueError(f"{place}: {BASE} takes the name of one config file")
    beside = Path(path).parent / name
    base = str(beside) if beside.is_file() else _find_shipped(name)
    if not base:
        raise ValueError(
            f"{place}: no config file {name}: {BASE} takes a file beside this one, or a shipped config such as "
            "imagenet/base/nat"
        )
    above = (*above, Path(path).resolve())
    if Path(base).resolve() in above:
        raise ValueError(f"{place}: {name} is based on this file: name another {BASE}")
    return _merge(_compose(base, above), node)


def _merge(below: yaml.MappingNode, above: yaml.MappingNode, *, sections: bool = True) -> yaml.MappingNode:
    pairs = {str(key.value): (key, value) for key, value in below.value}
    for key, value in above.value:
        _, old = pairs.get(str(key.value), (None, None))
        if sections and isinstance(old, yaml.MappingNode) and isinstance(value, yaml.MappingNode):
            value = _merge(old, value, sections=False)
        pairs[str(key.value)] = key, value
    below.value = list(pairs.values())
    return below


def _read(path: str) -> yaml.MappingNode:
    """Return the nodes of one file."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        loader = yaml.SafeLoader(text)
        loader.name = path  # which the nodes keep
        node = loader.get_single_node()
        _check_keys(node)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8 (byte {error.start}): save it as such") from error
    except yaml.MarkedYAMLError as error:
        raise ValueError(_in_words(path, text, error)) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or all(value is None for value in values.values()):
        raise ValueError(f"{path} holds no settings: expected is YAML such as data: {{batch_size: 64}}")
    assert isinstance(node, yaml.MappingNode)
    return node


def _place(node: yaml.Node) -> str:
    return f"{node.start_mark.name}, line {node.start_mark.line + 1}"


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _check_keys(node: yaml.Node | None) -> None:
    """Refuse a key that is given twice: readers of YAML take the last value without a word."""
    known: dict[str, yaml.Node] = {}
    for key, value in _pairs(node):
        if isinstance(key, yaml.ScalarNode):
            first = known.setdefault(key.value, key)
            if first is not key:
                line = first.start_mark.line + 1
                raise ValueError(f"{_place(key)}: {key.value} is given once more, after line {line}")
        _check_keys(value)
    for item in node.value if isinstance(node, yaml.SequenceNode) else []:
        _check_keys(item)


def _in_words(path: str, text: str, error: yaml.MarkedYAMLError) -> str:
    mark, problem = error.problem_mark, error.problem or "not YAML"
    if mark is None:
        return f"{path}: {problem}"
    if "\t" in [*text.splitlines(), ""][mark.line][: mark.column + 1]:
        problem = "a tab: indent with spaces"
    if "could not determine a constructor" in problem:
        problem = f"{problem.split()[-1]}: objects of Python are not read from config files"
    within = f" ({error.context}, from line {error.context_mark.line + 1})" if error.context_mark else ""
    return f"{path}, line {mark.line + 1}: {problem}{within}"
