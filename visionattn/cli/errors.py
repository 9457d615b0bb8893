"""Failure of a command: one line on stderr with the thing and the remedy, and an exit status."""

import contextlib
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from visionattn.cli.configs import given_options, named_configs, place_of
from visionattn.errors import TRACEBACK, UserError
from visionattn.errors import UsageError as UsageError
from visionattn.errors import one_line as one_line

OWN_PACKAGES = [
    Path(place)
    for spec in map(find_spec, ("visionattn", "visionattn_kernels"))
    if spec is not None
    for place in spec.submodule_search_locations or ()
]
DEBUG_HINT = "run again with --debug for the traceback"


def run(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command, whose ``main`` takes the arguments as `normalize` returns them, and return its exit status.

    That is 0 on success, and for ``--version``, which every command has; 1 after an error, 2 after a usage error, 130
    after Ctrl-C and 143 after Lightning has ended a run upon SIGTERM, each with one line on stderr.
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
        # What is still in the buffer may also meet a closed pipe; here that can be handled.
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
    """Return the words without ``--debug``, and ``--per_class`` for ``--per-class``."""
    arguments = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and len(name) > 2:
            argument = "--" + name[2:].replace("-", "_") + equals + value
        if argument != "--debug":
            arguments.append(argument)
    return arguments


def describe(error: BaseException) -> str:
    """Return one line: the message if it was written for users, otherwise its type too and a hint."""
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
    # Worker processes also share images through memory; this comes first.
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
"""Messages of libraries about faults outside the program, with the line that says what can be done."""


def _written_for_users(error: BaseException) -> bool:
    """Check whether the message names the thing and the remedy, as those that this project raises do.

    That is true of UserError, and of the types below if the line that raised is ours. The line is not enough for other
    types: torch's RuntimeErrors leave no frame, and seem to come from the line of ours that called torch.
    """
    if isinstance(error, UserError):
        return True
    if not isinstance(error, ValueError | OSError | FloatingPointError | ImportError):
        return False
    quoted = re.findall(r'File "([^"]+)"', str(error)) if TRACEBACK in str(error) else []  # by a data-loader worker
    files = quoted or [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(files) and any(Path(files[-1]).is_relative_to(package) for package in OWN_PACKAGES)


def _set_by_config(message: str, argv: Sequence[str]) -> str:
    """Return where config files set options that a message names and the command line does not."""
    given = {option for option, _ in given_options(argv)}
    options = [option for option in dict.fromkeys(re.findall(r"--([\w.]+\w)", message)) if f"--{option}" not in given]
    places = [(option, place_of(config, option)) for config in named_configs(argv) for option in options]
    told = [
        f"--{option}: {place}" for option, place in places if place and place.rpartition(", line")[0] not in message
    ]
    return f" ({'; '.join(told)})" if told else ""


@contextlib.contextmanager
def _warnings_of_one_line() -> Iterator[None]:
    """Print a warning as one line, without the line of code that raised it."""
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
