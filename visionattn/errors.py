"""Errors that are written for users."""

import re

TRACEBACK = "Traceback (most recent call last)"


class UserError(ValueError):
    """A request that cannot be met: one line with the thing, its value, the bound and the remedy.

    Commands print it as it is, and so a plain ``ValueError`` raised in this package. Other errors are printed with
    their type and a hint to ``--debug``.
    """


class UsageError(UserError):
    """A request that is wrong in itself, such as options that contradict each other; commands end with status 2."""


def one_line(message: str) -> str:
    """Return a message of several lines as one, without the traceback that a data-loader worker quotes in it."""
    lines = [line for line in message.splitlines() if line.strip()]
    if TRACEBACK in message:
        last_frame = max(number for number, line in enumerate(lines) if line.startswith(" ") or TRACEBACK in line)
        lines = lines[last_frame + 1 :] or lines
        lines[0] = re.sub(r"^[\w.]+: ", "", lines[0])
    return " ".join(line.strip() for line in lines)
