"""Errors about data."""


class DataError(ValueError):
    """The data set is not there or not as expected; the message names it and what to do."""
