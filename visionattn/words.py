"""Words of messages."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and its noun: ``1 epoch``, ``2,000 epochs``.

    Args:
        number: how many.
        noun: in the singular.
        plural: by default ``noun`` with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
