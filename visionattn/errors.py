"""Errors that are written for users."""


class UserError(ValueError):
    """A request that cannot be met: one line with the thing, its value, the bound and the remedy.

    Commands print it as it is, and so a plain ``ValueError`` raised in this package. Other errors are printed with
    their type and a hint to ``--debug``.
    """


class UsageError(UserError):
    """A request that is wrong in itself, such as options that contradict each other; commands end with status 2."""
