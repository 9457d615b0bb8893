"""Errors about data."""

from visionattn.errors import UserError


class DataError(UserError):
    """The data set is not there or not as expected; the message names it and what to do."""
