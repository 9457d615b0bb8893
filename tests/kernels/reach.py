"""The check that values which are not finite reach those queries and keys alone that see them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from visionattn_kernels import Window, windowed_attention


def assert_reaches_who_sees(
    window: Window,
    inputs: Mapping[str, Tensor],
    backend: str,
    name: str,
    value: float = torch.nan,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> None:
    """Put a value that is not finite in one place, and check that what may not depend on it is unchanged.

    A key or value reaches the queries that see it; a query, or its output gradient, is reached itself. The gradients of
    a query that is reached may be anything, as may those of the keys and values that it sees.

    Args:
        window: Which keys a query sees.
        inputs: Arguments of `windowed_attention` by name.
        backend: Which one computes.
        name: "q", "k", "v" or "grad", the output gradient; NaN there must also be found in every query it reaches.
        value: What is put there.
        seed: Of the place, and of the output gradient.
        tolerance: Of what may not depend on it; a backend may compute it in another order.

    Raises:
        AssertionError: Something else has changed, or NaN was lost.
    """
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(*inputs["q"].shape[:-1], inputs["v"].shape[-1], generator=generator).to(inputs["q"])
    clean = {**inputs, "grad": grad}
    spoilt = {x: t.detach().clone() for x, t in clean.items()}
    place = tuple(int(torch.randint(n, (), generator=generator)) for n in clean[name].shape)
    spoilt[name][place] = value
    before, after = (_differentiate(window, {x: t[x] for x in inputs}, backend, t["grad"]) for t in (clean, spoilt))

    seen = _visible(window, (inputs["k"].shape[1], inputs["k"].shape[2]))
    batch, row, column, head, _ = place
    position = row * clean[name].shape[2] + column
    queries = seen[:, position] if name in "kv" else torch.arange(len(seen)) == position
    keys = seen[queries].any(0)
    for result, expected in before.items():
        if result.removeprefix("grad_") in ("rpb", "extra_k", "extra_v"):
            continue  # what all queries share
        found, expected = (x.flatten(1, 2).unflatten(2, (inputs["q"].shape[3], -1)) for x in (after[result], expected))
        reached = torch.zeros(found.shape[:3], dtype=torch.bool)  # [B, positions, heads]
        reached[batch, :, head] = keys if result in ("grad_k", "grad_v") else queries
        torch.testing.assert_close(found[~reached], expected[~reached], rtol=tolerance, atol=tolerance)
        if value != value and (result == "grad_q" or (result == "out" and name != "grad")):
            assert not found[reached].isfinite().all(-1).any(), f"NaN in {name} is lost in {result} of {backend}"


def _differentiate(window: Window, inputs: Mapping[str, Tensor], backend: str, grad: Tensor) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    out, lse = windowed_attention(**leaves, window=window, backend=backend, return_lse=True)
    found = torch.autograd.grad((out, lse), list(leaves.values()), (grad, torch.ones_like(lse)))
    return {"out": out, "lse": lse, **{f"grad_{name}": x for name, x in zip(leaves, found, strict=True)}}


def _visible(window: Window, size: tuple[int, int]) -> Tensor:
    """Return which keys of the map each query sees, `[Q_h * Q_w, H * W]`."""
    rows, columns = (
        axis.visible(n)[0][:, axis.margin(n) : axis.margin(n) + n] for axis, n in zip(window.axes, size, strict=True)
    )
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)
