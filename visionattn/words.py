"""Words of messages."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and its noun, by default with an s: ``1 epoch``, ``2,000 epochs``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
