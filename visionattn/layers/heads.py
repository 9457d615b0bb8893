"""Checks of attention heads."""


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse a number of heads that does not divide the channels.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """
    if dim % num_heads:
        raise ValueError(f"num_heads must divide dim; got dim {dim} and num_heads {num_heads}")
