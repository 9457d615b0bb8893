"""How a command fails: one line on stderr that names the thing and the remedy, and an exit status."""

import argparse
import contextlib
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import reduce
from importlib.metadata import version
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

from jsonargparse import set_parsing_settings
from jsonargparse.typing import register_type

from visionattn.cli.configs import find_configs, given_options, line_of, named_configs, read_config
from visionattn.cli.hints import ELSEWHERE, meant_option, near_matches
from visionattn.cli.lists import accept_commas
from visionattn.errors import TRACEBACK
from visionattn.errors import UsageError as UsageError
from visionattn.errors import one_line as one_line

OWN_PACKAGES = {"visionattn", "visionattn_kernels"}
DEBUG_HINT = "run again with --debug for the traceback"


class ConciseParser(argparse.ArgumentParser):
    """Mixin for jsonargparse parsers whose errors are a :class:`UsageError` of one line, not the usage and an exit.

    Put it before the parser class: ``class Parser(ConciseParser, jsonargparse.ArgumentParser)``. Subcommand parsers are
    made of the same class, so that they behave alike.
    """

    configs: Sequence[str] = ()
    """The config files of the command line."""

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        """Parses, for the subcommand too, such that a bare ``--flag`` stands for ``--flag true``, and 1 for an int."""
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
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            if hint in (bool, bool | None) and action.nargs is None:
                action.nargs, action.const = "?", True
            if hint in (list[Path], list[Path] | None) and action.nargs is None:
                # As shells write out a pattern: all words up to the next option.
                action.nargs, action.metavar, action._typehint = "+", "FILE", Path  # type: ignore[attr-defined]
            elif get_origin(hint) in (Union, UnionType):
                # Types are tried in their order. As float, --trainer.limit_train_batches 1 would be the whole of an
                # epoch, and as str, --trainer.val_check_interval 0.5 would be a time.
                ordered = reduce(or_, sorted(get_args(hint), key=lambda kind: {float: 1, str: 2, Path: 3}.get(kind, 0)))
                action._typehint = ordered  # type: ignore[attr-defined]
            accept_commas(action)
        return super().parse_args(args, *others, **kwargs)

    def validate(self, namespace: Any, *args: Any, **kwargs: Any) -> None:
        """Checks null, too, which jsonargparse lets pass for any type, and that options of a group are a mapping."""
        parser: Any = super()
        for name in getattr(self, "groups", ()):
            if not hasattr(options := namespace.get(name, {}), "items"):
                raise TypeError(f'Parser key "{name}": Expected options by name. Got value: {options!r}')
        parser.validate(namespace, *args, **kwargs)
        for action in self._actions:
            if action.default not in (None, argparse.SUPPRESS) and namespace.get(action.dest, ...) is None:
                parser._check_value_key(action, None, action.dest, namespace)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Called by argparse and jsonargparse for every parsing error."""
        raise UsageError(one_line(_explain(self, message))) from ex


def run(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command and turns whatever happens into an exit status.

    Args:
        main: the command; takes the arguments, without ``--debug`` and with option names spelt with underscores.
        argv: the arguments, by default those of the process.

    Returns:
        0 on success, and for ``--version``, which every command has; 1 after an error, 2 after a usage error, 130 after
        Ctrl-C and 143 after Lightning has wound a run up upon SIGTERM, each with one line on stderr.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # paths, and terminals, are not always of UTF-8
            stream.reconfigure(errors="backslashreplace")
    if "--version" in arguments:
        print(f"visionattn {version('visionattn')}")
        return 0
    try:
        with contextlib.nullcontext() if debug else _warnings_of_one_line():
            main(normalize(arguments))
        # What is still in the buffer may meet a closed pipe, too; here that can be handled.
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except SystemExit as error:
        return _leave(error)
    except BrokenPipeError:
        # The reader of our output has left, as `head` does. The interpreter would complain once more at its end.
        if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, UsageError):
            return _fail(describe(error) + _set_by_config(str(error), normalize(arguments)), 2)
        return _fail(describe(error), 1)
    return 0


def normalize(argv: Iterable[str]) -> list[str]:
    """Drops ``--debug`` and lets ``--per-class`` stand for ``--per_class``."""
    arguments = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and len(name) > 2:
            argument = "--" + name[2:].replace("-", "_") + equals + value
        if argument != "--debug":
            arguments.append(argument)
    return arguments


def describe(error: BaseException) -> str:
    """One line for ``error``: its message where that was written for users, otherwise its type too and a hint."""
    message = one_line(str(error))
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if message and _written_for_users(error):
        return message
    name = type(error).__name__
    for pattern, what in _KNOWN.items():
        if match := re.search(pattern, f"{name}: {message}"):
            return match.expand(what)
    return ": ".join(filter(None, [name, message])) + f" ({DEBUG_HINT})"


_KNOWN = {
    # Worker processes share images through memory, too; this comes first.
    r"/torch_\d+|Bus error|out of shared memory": (
        "the memory that data-loader workers share (/dev/shm) is full: pass --data.num_workers 0 or a smaller "
        "--data.batch_size, or give the container more, as docker run --shm-size 8g does"
    ),
    r"DataLoader worker.*? ((?:is )?killed by signal: \w+|exited unexpectedly)": (
        r"a data-loader worker \1, as happens when memory runs out: pass a smaller --data.num_workers, or 0 to read "
        "images without workers"
    ),
    r"OutOfMemoryError|MemoryError|out of memory|can't allocate memory|bad_alloc": (
        "out of memory: pass a smaller --data.batch_size, in training with --trainer.accumulate_grad_batches to make "
        "up for it; --trainer.precision bf16-mixed and --model.grad_checkpointing true save more"
    ),
    r"Input (height|width) \((\d+)\) ((?:doesn't match model|should be divisible by patch size) \(\d+\))": (
        r"the model cannot have images of this size: its input \1, \2, \3; pass --data.img_size N, or "
        "--model.model_kwargs '{img_size: N}'"
    ),
    r"to have (\d+) channels, but got (\d+) channels": (
        r"the model takes images of \1 channels, and these have \2: leave out in_chans of --model.model_kwargs, or "
        "pass --data.in_chans"
    ),
    r"Expected more than 1 value per channel when training": (
        "batch norm finds nothing to average over one image: pass --data.batch_size 2 or more, or larger images"
    ),
    r"Early stopping conditioned on metric `(\S+)` which is not available\..*following: (.*)": (
        r"--trainer.callbacks: EarlyStopping finds no metric \1: let it monitor one of \2"
    ),
    r"No supported gpu backend|accelerator is not available": (
        "--trainer.accelerator: torch finds no such device in this machine; leave the option out, or pass cpu"
    ),
}
"""What libraries say when something outside the program is wrong, and what can be done about it."""


def _read_duration(text: str) -> timedelta:
    """Read a time as Python writes it: ``2:30:00``, ``1 day, 2:30:00``. Lightning's own form, 01:02:30:00, is none."""
    match = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d+):(\d+(?:\.\d+)?)", str(text))
    if match is None:
        raise ValueError(f"expected a time such as 2:30:00 or 1 day, 2:30:00, got {text!r}")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _write_duration(value: object) -> str:
    """Write a time for a config file; in a union, jsonargparse would offer numbers and mappings, too."""
    if not isinstance(value, timedelta):
        raise TypeError(f"{value!r} is no time")
    return str(value)


def _written_for_users(error: BaseException) -> bool:
    """Whether the message names the thing and the remedy, as those raised in this project on purpose do.

    Torch's own RuntimeErrors leave no frame behind, so that they seem to come from the line of ours that called it;
    for other types than these, being raised here says nothing.
    """
    if isinstance(error, UsageError) or type(error).__module__.partition(".")[0] in OWN_PACKAGES:
        return True
    if not isinstance(error, ValueError | OSError | FloatingPointError | ImportError):
        return False
    if TRACEBACK in str(error):
        files = re.findall(r'File "([^"]+)"', str(error))
        return bool(files) and not OWN_PACKAGES.isdisjoint(Path(files[-1]).parts)
    frames = list(traceback.walk_tb(error.__traceback__))
    # The name of a module that runs as `python -m` is "__main__", but its package is as ever.
    return bool(frames) and (frames[-1][0].f_globals.get("__package__") or "").partition(".")[0] in OWN_PACKAGES


def _explain(parser: argparse.ArgumentParser, message: str) -> str:
    """Adds near matches to what argparse and jsonargparse say of unknown options, keys and subcommands."""
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        option = match[1].partition("=")[0]
        if not option.startswith("-"):
            return f"unexpected argument {option!r}"
        return f"unknown option {option}{meant_option(option, parser._option_string_actions)}"
    if match := re.match(r"(Subcommand|Group) '(\S+)' does not accept option '(\S+)'", message):
        kind, owner, key = match.groups()
        subcommands = getattr(parser, "_subcommands_action", None)
        subparser = subcommands.choices[owner] if kind == "Subcommand" and subcommands else parser
        name = key if kind == "Subcommand" else f"{owner}.{key}"
        near = near_matches(name, (action.dest for action in subparser._actions))
        return f"unknown key {name}{_place(parser, name)}{near}"
    if match := re.match(r"argument \S+: invalid choice: '(\S+)' \(choose from (.+)\)", message):
        word, choices = match[1], re.findall(r"[\w-]+", match[2])
        return f"unknown command {word!r}{near_matches(word, choices) or f'; choose from {match[2]}'}"
    if match := re.match(r"expected \"\S+\" to be one of \{(.+)\}, but it was not provided", message):
        return f"a command is wanted: {match[1].replace(',', ', ')}"
    if match := re.match(r"the following arguments are required: (.+)", message):
        # A subcommand's options are reported as `command.option`.
        commands = "|".join(getattr(getattr(parser, "_subcommands_action", None), "choices", None) or ["$"])
        names = [re.sub(rf"^({commands})\.", "", name) for name in match[1].split(", ")]
        return f"missing: {', '.join(f'--{name}' for name in names)}"
    if match := re.match(r'Parser key "(\S+)":.*Unable to load config "(.*?)"', message, flags=re.DOTALL):
        option, value = match.groups()
        meant = meant_option(f"--{option}", parser._option_string_actions) if option in ELSEWHERE else ""
        return f"--{option} takes a config file of options --{option}.NAME, and {value!r} is none{meant}"
    if match := re.match(r"Parser key \"(\S+)\":.*NestedArg\(key='(\S+)', val=", message, flags=re.DOTALL):
        option = f"--{match[1]}.{match[2]}"
        return f"unknown option {option}{meant_option(option, parser._option_string_actions)}"
    if match := re.match(r'Parser key "(\S+)":\s+(.*)', message, flags=re.DOTALL):
        return f"--{match[1]}{_place(parser, match[1])}: {_expected(match[2])}"
    return message


def _place(parser: argparse.ArgumentParser, option: str) -> str:
    """Where a config file sets ``option``, if one does."""
    places = ((config, line_of(config, option)) for config in getattr(parser, "configs", ()))
    return next((f" ({config}, line {line})" for config, line in places if line), "")


def _set_by_config(message: str, argv: Sequence[str]) -> str:
    """Where config files set options that a message names and the command line does not."""
    given = {option for option, _ in given_options(argv)}
    options = [option for option in dict.fromkeys(re.findall(r"--([\w.]+\w)", message)) if f"--{option}" not in given]
    lines = [(option, config, line_of(config, option)) for config in named_configs(argv) for option in options]
    places = [f"--{option}: {config}, line {line}" for option, config, line in lines if line and config not in message]
    return f" ({'; '.join(places)})" if places else ""


def _expected(message: str) -> str:
    """What jsonargparse says of a value of the wrong type, without Python's words."""
    if match := re.match(r"Does not validate .*?Subtypes: \[(.*?)\]\s+Errors:.*Given value: (.*)", message, re.DOTALL):
        hints = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", match[1]).replace("NoneType", "null")
        hints = re.sub(r"typing\.", "", re.sub(r"(?:typing\.)?Literal\[([^]]*)\]", r"\1", hints))
        return f"expected {hints.replace(', null', ' or null')}. Got value: {match[2]}"
    expected = re.sub(r"^Expected an? (?:<class '(\w+)'>|typing\.)?", r"expected \1", message)
    return f"{expected[0].lower()}{expected[1:]}"


@contextlib.contextmanager
def _warnings_of_one_line() -> Iterator[None]:
    """Shows what a warning says; where in the code it was raised is for --debug."""
    original = warnings.formatwarning
    warnings.formatwarning = lambda message, *args, **kwargs: f"warning: {one_line(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = original


def _leave(error: SystemExit) -> int:
    # Lightning turns Ctrl-C into sys.exit(1) once it has saved what there is to save.
    if isinstance(error.__context__, KeyboardInterrupt):
        return _fail("interrupted", 130)
    if type(error).__name__ == "SIGTERMException":  # Lightning's, which carries no status
        return _fail("terminated by SIGTERM", 143)
    if isinstance(error.code, str):
        return _fail(one_line(error.code), 1)
    return error.code or 0


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
