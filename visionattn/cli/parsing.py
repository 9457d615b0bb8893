"""Parsers of commands: shorthands, configs based on others, help in sections, and errors of one line."""

import argparse
import re
from argparse import SUPPRESS
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from datetime import timedelta
from functools import reduce
from operator import or_
from pathlib import Path
from types import MappingProxyType, SimpleNamespace, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, auto_cli, set_parsing_settings
from jsonargparse.typing import register_type

from visionattn.cli.configs import config_text, find_configs, named_configs, place_of, read_config
from visionattn.cli.errors import UsageError, one_line
from visionattn.cli.hints import ELSEWHERE, meant_option
from visionattn.cli.lists import accept_commas
from visionattn.errors import UserError
from visionattn.suggestions import suggest


# Private names of argparse and jsonargparse: no public name lists options and commands, or changes or checks a type.
class ConciseParser(argparse.ArgumentParser):
    """Mixin for jsonargparse parsers whose errors are a :class:`UsageError` of one line.

    Put it before the parser class: ``class Parser(ConciseParser, jsonargparse.ArgumentParser)``. Parsers of subcommands
    are of the same class.

    Attributes:
        configs: config files of the command line.
        common: names of the options that ``-h`` lists and ``--help`` lists first, with a short help for the former;
            empty where ``-h`` lists all.
        hidden: names of options that the help leaves out.
        titles: titles of the sections of the help in order, by group of options; "" for options of no group.
    """

    configs: Sequence[str] = ()
    common: Mapping[str, str] = MappingProxyType({})
    hidden: Collection[str] = ()
    titles: Mapping[str, str] = MappingProxyType({"": "options"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "add_help": False})
        self.add_argument("-h", "--help", action=_Help, help="show the most used options (-h) or all (--help).")

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        """Parse, also for the subcommand; a bare ``--flag`` means ``--flag true``, and 1 an int."""
        # What a config file names is imported, and some of it is called: nothing that runs commands or code.
        set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)
        register_type(timedelta, _write_duration, _read_duration, fail_already_registered=False)
        args = None if args is None else find_configs(args)
        self.configs = named_configs(args or [])
        try:
            for config in self.configs:
                read_config(config)
        except ValueError as error:
            raise UsageError(str(error)) from error
        first = (args or [""])[0].partition("=")[0]
        if _commands(self) and first.startswith("-") and first not in self._option_string_actions:
            raise UsageError(f"{first} stands before the command: write COMMAND {first} ...")
        for action in self._actions:
            _ease(action)
        return super().parse_args(args, *others, **kwargs)

    def parse_string(self, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Any:
        """Parse the settings of a config file together with those of its base."""
        parser: Any = super()
        return parser.parse_string(config_text(str(path)) if path else content, path, *args, **kwargs)

    def validate(self, namespace: Any, *args: Any, **kwargs: Any) -> None:
        """Check null also, which jsonargparse lets pass for any type, and that options of a group are a mapping."""
        parser: Any = super()
        for name in getattr(self, "groups", ()):
            if not hasattr(options := namespace.get(name, {}), "items"):
                raise TypeError(f'Parser key "{name}": Expected options by name. Got value: {options!r}')
        parser.validate(namespace, *args, **kwargs)
        for action in self._actions:
            if action.default not in (None, SUPPRESS) and namespace.get(action.dest, ...) is None:
                parser._check_value_key(action, None, action.dest, namespace)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise for every parsing error that argparse and jsonargparse report."""
        raise UsageError(one_line(_explain(self, message))) from ex

    def format_help(self, *args: Any, short: bool = False) -> str:
        """Return the help: all sections of options, or only the first with the most used ones."""
        if getattr(self, "_subcommands_action", None):
            return super().format_help(*args)
        groups, formatter = self._action_groups, self.formatter_class
        words = [f"{action.metavar}{' ...' * (action.nargs == '+')}" for action in _words(self)]
        self.usage = " ".join([self.prog.replace(" [options]", ""), *words, "[options]"])
        parser: Any = self
        if short and self.common:
            parser._action_groups, self.formatter_class = [_most_used(self)], _ShortFormatter
            self.epilog = "--help lists all options."
        else:
            parser._action_groups = _sections(self)
        try:
            return super().format_help(*args)
        finally:
            self._action_groups, self.formatter_class, self.epilog = groups, formatter, None


class EvaluationParser(ConciseParser, ArgumentParser):
    """Make options from the signatures and docstrings of commands."""

    def instantiate(self, *args: Any, **kwargs: Any) -> Any:
        """Make groups of options; what they refuse is an error of the command line."""
        try:
            return super().instantiate(*args, **kwargs)
        except UserError as error:
            raise UsageError(str(error)) from error


def run_with_words(command: Callable[..., None], argv: list[str], prog: str) -> None:
    """Run a command whose parameters without a default are words: ``visionattn predict MODEL IMAGES``."""
    options: dict[str, Any] = {"parser_class": EvaluationParser, "prog": f"{prog} {argv[0]}"}
    auto_cli(command, args=argv[1:], as_positional=True, **options)


class _ShortFormatter(DefaultHelpFormatter):
    """Help without types and defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)  # type: ignore[no-untyped-call]

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help or ""


class _Help(argparse._HelpAction):
    """Print the help: ``-h`` the short one, ``--help`` all of it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(parser.format_help(short=option_string == "-h"), end="")
        argparse.ArgumentParser.exit(parser)


def _most_used(parser: ConciseParser) -> SimpleNamespace:
    """Return the most used options, each with a short help."""
    actions = [copy(action) for action in _common(parser)]
    for action in actions:
        action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
        action.metavar, action.help = "VALUE", parser.common[action.dest]
    return SimpleNamespace(title="options", description=None, _group_actions=actions)


def _common(parser: ConciseParser) -> list[argparse.Action]:
    shown = {action.dest: action for action in _shown(parser)}
    return [shown[name] for name in parser.common if name in shown]


def _words(parser: ConciseParser) -> list[argparse.Action]:
    """Return the positional arguments."""
    return [action for action in parser._actions if not action.option_strings and action.dest != "subcommand"]


def _shown(parser: ConciseParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.help != SUPPRESS and action.dest not in parser.hidden]


def _sections(parser: ConciseParser) -> list[SimpleNamespace]:
    """Return the options by group, after the most used ones; argparse reads these as it does its own groups."""
    common = _common(parser)
    groups = getattr(parser, "groups", None) or {}
    found: dict[str, list[argparse.Action]] = {"words": _words(parser), "common": common}
    found |= {name: [] for name in parser.titles}
    for action in _shown(parser):
        if action not in common and action.option_strings:
            group = action.option_strings[-1].lstrip("-").partition(".")[0]
            found.setdefault(group if group in groups else "", []).append(action)
    titles = {"words": "arguments", "common": "most used", **parser.titles}
    return [
        SimpleNamespace(title=titles.get(name, name), description=None, _group_actions=actions)
        for name, actions in found.items()
        if actions
    ]


def _ease(action: Any) -> None:
    """Let an option take its value as users write it."""
    hint = getattr(action, "_typehint", None)
    if not action.option_strings:
        action.metavar = action.dest.upper()
        if hint == list[str]:
            # All words that follow; jsonargparse would read files that they name.
            action.nargs, action._typehint = "+", str
            return
    if hint in (bool, bool | None) and action.nargs is None:
        action.nargs, action.const = "?", True
    if hint in (list[Path], list[Path] | None) and action.nargs is None:
        # As shells write out a pattern: all words up to the next option.
        action.nargs, action.metavar, action._typehint = "+", "FILE", Path
    elif get_origin(hint) in (Union, UnionType):
        # Types are tried in their order. As float, --trainer.limit_train_batches 1 would be the whole of an
        # epoch, and as str, --trainer.val_check_interval 0.5 would be a time.
        order = {float: 1, str: 2, Path: 3}
        action._typehint = reduce(or_, sorted(get_args(hint), key=lambda kind: order.get(kind, 0)))
    accept_commas(action)


def _read_duration(text: str) -> timedelta:
    """Read a time as Python writes it: ``2:30:00``, ``1 day, 2:30:00``. Lightning's form, 01:02:30:00, is refused."""
    match = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d+):(\d+(?:\.\d+)?)", str(text))
    if match is None:
        raise ValueError(f"expected a time such as 2:30:00 or 1 day, 2:30:00, got {text!r}")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _write_duration(value: object) -> str:
    """Write a time for a config file; in a union, jsonargparse would also offer numbers and mappings."""
    if not isinstance(value, timedelta):
        raise TypeError(f"{value!r} is no time")
    return str(value)


def _explain(parser: ConciseParser, message: str) -> str:
    """Return a message of argparse or jsonargparse in words of this project, with near matches."""
    for pattern, reworded in _REWORDED:
        if match := re.match(pattern, message, re.DOTALL):
            return reworded(parser, *match.groups())
    return message


def _unrecognized(parser: ConciseParser, word: str) -> str:
    option = word.partition("=")[0]
    return _unknown_option(parser, option) if option.startswith("-") else f"unexpected argument {option!r}"


def _unknown_option(parser: ConciseParser, option: str) -> str:
    return f"unknown option {option}{meant_option(option, parser._option_string_actions)}"


def _unknown_key(parser: ConciseParser, kind: str, owner: str, key: str) -> str:
    commands = _commands(parser)
    options = (commands[owner] if kind == "Subcommand" and commands else parser)._actions
    name = key if kind == "Subcommand" else f"{owner}.{key}"
    return f"unknown key {name}{_set_in(parser, name)}{suggest(name, (action.dest for action in options))}"


def _unknown_command(parser: ConciseParser, word: str, choices: str) -> str:
    near = suggest(word, re.findall(r"[\w-]+", choices))
    return f"unknown command {word!r}{near or f'; choose from {choices}'}"


def _missing_options(parser: ConciseParser, options: str) -> str:
    # A subcommand's options are reported as `command.option`.
    names = [re.sub(rf"^({'|'.join(_commands(parser)) or '$'})\.", "", name) for name in options.split(", ")]
    words = {action.dest: str(action.metavar) for action in _words(parser)}
    return f"missing: {', '.join(words.get(name, f'--{name}') for name in names)}"


def _before_command(parser: ConciseParser, option: str, command: str) -> str:
    given = "--config" if any(place_of(config, option) for config in parser.configs) else f"--{option}"
    return f"{given} stands before the command: write {command} {given} ..."


def _no_config(parser: ConciseParser, option: str, value: str) -> str:
    meant = meant_option(f"--{option}", parser._option_string_actions) if option in ELSEWHERE else ""
    return f"--{option} takes a config file of options --{option}.NAME, and {value!r} is not one{meant}"


def _wrong_value(parser: ConciseParser, option: str, problem: str) -> str:
    union = re.match(r"Does not validate .*?Subtypes: \[(.*?)\]\s+Errors:.*Given value: (.*)", problem, re.DOTALL)
    if union:
        hints = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", union[1]).replace("NoneType", "null")
        hints = re.sub(r"typing\.", "", re.sub(r"(?:typing\.)?Literal\[([^]]*)\]", r"\1", hints))
        expected = f"expected {hints.replace(', null', ' or null')}. Got value: {union[2]}"
    else:
        expected = re.sub(r"^Expected an? (?:<class '(\w+)'>|typing\.)?", r"expected \1", problem)
    return f"--{option}{_set_in(parser, option)}: {expected[0].lower()}{expected[1:]}"


_REWORDED: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"unrecognized arguments: (\S+)", _unrecognized),
    (r"(Subcommand|Group) '(\S+)' does not accept option '(\S+)'", _unknown_key),
    (r"argument \S+: invalid choice: '(\S+)' \(choose from ([^\n]+)\)", _unknown_command),
    (
        r"expected \"\S+\" to be one of \{([^\n]+)\}, but it was not provided",
        lambda parser, commands: f"a command is wanted: {commands.replace(',', ', ')}",
    ),
    (
        r"ambiguous option: (\S+) could match ([^\n]+)",
        lambda parser, option, near: f"unknown option {option}; did you mean {near}?",
    ),
    (r"the following arguments are required: ([^\n]+)", _missing_options),
    (r"Option '(\S+)' is not accepted before subcommand '(\S+)'", _before_command),
    (r'Parser key "(\S+)":.*Unable to load config "(.*?)"', _no_config),
    (
        r"Parser key \"(\S+)\":.*NestedArg\(key='(\S+)', val=",
        lambda parser, group, name: _unknown_option(parser, f"--{group}.{name}"),
    ),
    (r'Parser key "(\S+)":\s+(.*)', _wrong_value),
)
"""Messages of argparse and jsonargparse, and what is said instead of their groups."""


def _commands(parser: ConciseParser) -> dict[str, Any]:
    """Return the parsers of the commands by name."""
    return getattr(getattr(parser, "_subcommands_action", None), "choices", None) or {}


def _set_in(parser: ConciseParser, option: str) -> str:
    """Return where a config file sets an option, in parentheses, or ""."""
    place = next(filter(None, (place_of(config, option) for config in parser.configs)), "")
    return f" ({place})" if place else ""
