"""Words of messages."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and its noun, by default with an s: ``1 epoch``, ``2,000 epochs``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def sized(num_bytes: int) -> str:
    """Return a number of bytes with its unit: ``12.0 MB``, ``1.5 GB``."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
