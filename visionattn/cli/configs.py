"""Config files as their writers see them: what is wrong with one is told with its name and line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

OPTIONS = ("--config", "-c")
PACKAGE = Path(__file__).parents[1]


def given_options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word of a command line, with the value that it has if it is an option: ``--a=b`` or ``--a b``."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        yield option, value if equals else following


def shipped_configs() -> Path:
    """Return the folder of the configs that come with the package: inside it in a wheel, beside it in a checkout."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def find_config(name: str) -> str:
    """Return the file that ``--config`` names: one that exists, or a shipped one.

    Shipped configs need neither a checkout nor the suffix: ``configs/cifar10/nat.yaml`` and ``cifar10/nat`` name the
    same file. What is neither comes back as it is.
    """
    shipped = shipped_configs() / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return str(shipped) if not Path(name).exists() and shipped.is_file() else name


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
    """Return the config files that a command line names, in their order."""
    return [value for option, value in given_options(argv) if option in OPTIONS]


def read_config(path: str) -> dict[str, Any]:
    """What a config file holds; what its values may be is the parser's business, and files that are not there, too.

    Raises:
        ValueError: it is no YAML in UTF-8, gives a key twice, wants Python objects, or holds no settings by name.
    """
    if not path:
        raise ValueError("--config takes the name of a file")
    if not Path(path).exists():
        raise ValueError(
            f"no config file {path}: --config takes a file, or a shipped config such as quickstart or cifar10/nat "
            f"({shipped_configs()} holds them all)"
        )
    if not Path(path).is_file():
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        node = yaml.compose(text, yaml.SafeLoader)
        _check_keys(path, node)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8 (byte {error.start}): save it as such") from error
    except yaml.MarkedYAMLError as error:
        raise ValueError(_in_words(path, text, error)) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or all(value is None for value in values.values()):
        raise ValueError(f"{path} holds no settings: expected is YAML such as data: {{batch_size: 64}}")
    return values


def line_of(path: str, option: str) -> int | None:
    """The line of a config file that sets ``option``, as in ``data.batch_size``; None where there is none."""
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    line = None
    for key in option.split("."):
        found = next((pair for pair in _pairs(node) if pair[0].value == key), None)
        if found is None:
            return None
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _check_keys(path: str, node: yaml.Node | None) -> None:
    """YAML's readers take the last of several values for a key, without a word."""
    lines: dict[str, int] = {}
    for key, value in _pairs(node):
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if key.value in lines:
                raise ValueError(f"{path}, line {line}: {key.value} is given once more, after line {lines[key.value]}")
            lines[key.value] = line
        _check_keys(path, value)
    for item in node.value if isinstance(node, yaml.SequenceNode) else []:
        _check_keys(path, item)


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
