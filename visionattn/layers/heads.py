"""Checks of the numbers that attention modules are built with."""


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse a number of heads that does not divide the channels.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide dim; got dim {dim} and num_heads {num_heads}")


def check_positive(**sizes: int) -> None:
    """Refuse sizes below 1, given by the names of their options.

    Raises:
        ValueError: One is not.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
