"""Forked children that are killed or end, for tests of runs that are killed and resumed."""

import os
import signal
import traceback
from collections.abc import Callable
from typing import NoReturn

KILLED = -signal.SIGKILL
"""Status of a child that was killed."""
RAISED = 99
"""Status of a child that raised an exception."""


def kill_this_process() -> NoReturn:
    """Kill the process at once, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was ignored")


def run_in_child(action: Callable[[], object]) -> int:
    """Run an action in a forked child.

    Returns:
        What the action returned, if it is an int, else 0; `RAISED`, or the negative number of a signal.
    """
    child = os.fork()
    if child == 0:
        status = RAISED
        try:
            result = action()
            status = result if isinstance(result, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
