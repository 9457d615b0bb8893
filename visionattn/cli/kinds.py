"""The value of ``--task``, before there is a parser: the parser's options are those of the task."""

from collections.abc import Sequence
from typing import Any

from visionattn.cli.configs import OPTIONS, find_configs, given_options, read_config
from visionattn.cli.errors import UsageError
from visionattn.tasks import TASKS


def find_task(argv: Sequence[str]) -> str:
    """Return the ``--task`` of a command line or its config files; the last one counts, as for any option."""
    found: Any = "classification"
    for option, value in given_options(find_configs(argv)):
        if option == "--task":
            found = value
        elif option in OPTIONS:
            found = _task_in(value, found)
    if found not in TASKS:
        raise UsageError(f"unknown --task {found!r}: choose one of {', '.join(TASKS)}")
    return found


def _task_in(config: str, otherwise: Any) -> Any:
    """Return ``task`` from a config file; the parser reports errors in the file later."""
    try:
        values = read_config(config)
    except ValueError:
        return otherwise
    # A file for all of train.py, before the command, has a section for each command.
    sections = [values, *(section for section in values.values() if isinstance(section, dict))]
    return next((section["task"] for section in sections if isinstance(section.get("task"), str)), otherwise)
