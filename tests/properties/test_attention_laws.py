"""Laws of the operators on small drawn problems, for every backend that trains on a CPU."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from holding import holds_for
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.reach import assert_reaches_who_sees
from visionattn_kernels import Window, neighborhood_av_2d, neighborhood_qk_2d, windowed_attention
from visionattn_kernels.testing import assert_matches_reference, make_inputs
from visionattn_kernels.window import BOUNDARIES

BACKENDS = ("native", "tiled", "gemm", "reference")

Inputs = dict[str, Tensor]
Problem = tuple[Window, Inputs]


@st.composite
def windows(draw: Any, boundaries: tuple[str, ...] = BOUNDARIES, **fixed: Any) -> Window:
    """Draw windows on both axes; ``fixed`` are arguments that are not drawn."""
    kernel = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    drawn = {
        "stride": tuple(draw(st.integers(1, k)) for k in kernel),
        "dilation": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "is_causal": draw(st.tuples(st.booleans(), st.booleans())),
        "boundary": draw(st.sampled_from(boundaries)),
        "query_stride": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    }
    return Window.create(kernel, **(drawn | fixed))


@st.composite
def problems(draw: Any, boundaries: tuple[str, ...] = BOUNDARIES, bias: bool = True, **fixed: Any) -> Problem:
    """Draw a window and tensors of a small map, in float64."""
    window = draw(windows(boundaries, **fixed))
    more = (
        {"rpb": draw(st.booleans()), "rel": draw(st.booleans()), "num_extra": draw(st.integers(0, 2))} if bias else {}
    )
    inputs = make_inputs(
        window,
        draw(st.tuples(st.integers(1, 8), st.integers(1, 8))),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        head_dim=draw(st.sampled_from((1, 3, 8))),
        v_dim=draw(st.sampled_from((1, 5, 8))),
        seed=draw(st.integers(0, 2**16)),
        **more,
    )
    return window, inputs


def attend(window: Window, inputs: Inputs, backend: str | None = None, **changes: Any) -> Any:
    return windowed_attention(**{**inputs, **changes}, window=window, backend=backend)  # type: ignore[arg-type]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@holds_for(problems(), st.sampled_from(BACKENDS[:-1]))
def test_outputs_and_gradients_equal_the_reference(problem: Problem, backend: str) -> None:
    assert_matches_reference(*problem, backend)


@holds_for(problems(("shift", "mask")), st.sampled_from(BACKENDS))
def test_attention_weights_sum_to_one_and_are_not_negative(problem: Problem, backend: str) -> None:
    window, inputs = problem
    ones = {name: torch.ones_like(inputs[name]) for name in ("v", "extra_v") if name in inputs}
    close(attend(window, inputs, backend, **ones), torch.ones_like(attend(window, inputs, backend)))
    values = torch.cat([inputs[name].flatten(1, -3) for name in ("v", "extra_v") if name in inputs], 1)
    out = attend(window, inputs, backend).flatten(1, 2)
    assert (out <= values.amax(1, keepdim=True) + 1e-12).all()
    assert (out >= values.amin(1, keepdim=True) - 1e-12).all()


@holds_for(problems(("zero",), is_causal=False), st.sampled_from(BACKENDS))
def test_zero_padded_keys_get_attention_weight(problem: Problem, backend: str) -> None:
    """Boundary "zero" is boundary "mask" on a map with a margin of zeros."""
    window, inputs = problem
    sizes, margins = inputs["k"].shape[1:3], []
    for axis in window.axes:
        step = axis.dilation * axis.stride * axis.query_stride  # queries keep their place in group and block
        margins.append(-(-(axis.kernel_size + axis.stride) * axis.dilation // step) * step)
    pad = [0, 0, 0, 0, margins[1], margins[1], margins[0], margins[0]]
    skipped = [margin // r for margin, r in zip(margins, window.query_stride, strict=True)]
    around = [0, 0, 0, 0]
    for skip, margin, size, r in zip(skipped[::-1], margins[::-1], sizes[::-1], window.query_stride[::-1], strict=True):
        around += [skip, -(-(size + 2 * margin) // r) - skip - -(-size // r)]
    padded = {
        name: F.pad(x, pad) if name in "kv" else F.pad(x, around) if name in ("q", "rel_h", "rel_w") else x
        for name, x in inputs.items()
    }
    out = attend(replace(window, boundary="mask"), padded, "tiled")
    top, left = skipped
    height, width = inputs["q"].shape[1:3]
    close(attend(window, inputs, backend), out[:, top : top + height, left : left + width])


@holds_for(problems(), st.sampled_from(BACKENDS), st.floats(-30, 30))
def test_constant_bias_shifts_only_the_log_sum_exp(problem: Problem, backend: str, shift: float) -> None:
    window, inputs = problem
    inputs = {name: x for name, x in inputs.items() if not name.startswith("extra")}
    inputs["rpb"] = inputs.get(
        "rpb", torch.zeros(inputs["q"].shape[3], *(2 * k - 1 for k in window.kernel_size)).double()
    )
    out, lse = attend(window, inputs, backend, return_lse=True)
    moved, moved_lse = attend(window, inputs, backend, return_lse=True, rpb=inputs["rpb"] + shift)
    close(moved, out)
    close(moved_lse, lse + shift)


@holds_for(problems(), st.sampled_from(BACKENDS))
def test_transposed_map_has_the_transposed_output(problem: Problem, backend: str) -> None:
    window, inputs = problem
    names = ("kernel_size", "stride", "dilation", "is_causal", "query_stride")
    turned = replace(window, **{name: getattr(window, name)[::-1] for name in names})
    others = {name: x for name, x in inputs.items() if name.startswith("extra")}
    others |= {name: inputs[name].transpose(1, 2) for name in "qkv"}
    others |= {"rpb": inputs["rpb"].transpose(1, 2)} if "rpb" in inputs else {}
    if "rel_h" in inputs:
        others |= {"rel_h": inputs["rel_w"].transpose(1, 2), "rel_w": inputs["rel_h"].transpose(1, 2)}
    close(attend(turned, others, backend), attend(window, inputs, backend).transpose(1, 2))


@holds_for(problems(), st.sampled_from(BACKENDS))
def test_images_and_heads_are_independent(problem: Problem, backend: str) -> None:
    window, inputs = problem
    out = attend(window, inputs, backend)
    by_image = {name: x if name == "rpb" else x.flip(0) for name, x in inputs.items()}
    close(attend(window, by_image, backend), out.flip(0))
    heads = {name: 0 if name == "rpb" else -2 for name in inputs}
    by_head = {name: x.flip(heads[name]) for name, x in inputs.items()}
    close(attend(window, by_head, backend), out.flip(-2))
    changed = {name: inputs[name].clone() for name in "kv"}
    for x in changed.values():
        x[0] = torch.randn_like(x[0])
    close(attend(window, inputs, backend, **changed)[1:], out[1:])


@holds_for(
    problems(),
    st.sampled_from([*BACKENDS, "plain"]),
    st.sampled_from(["q", "k", "v", "grad"]),
    st.sampled_from([torch.nan, torch.inf, -torch.inf]),
    st.integers(0, 2**16),
    few=30,
)
def test_nonfinite_values_reach_only_the_queries_that_see_them(
    problem: Problem, backend: str, name: str, value: float, seed: int
) -> None:
    assert_reaches_who_sees(*problem, backend, name, value, seed)


@holds_for(
    windows(stride=1, query_stride=1),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 99),
    st.sampled_from(BACKENDS),
)
def test_attention_is_translation_equivariant_in_the_interior(
    window: Window, down: int, right: int, seed: int, backend: str
) -> None:
    """Moving the map moves the result: attention of a crop is the crop of attention, away from its borders."""
    moves = [step * dilation for step, dilation in zip((down, right), window.dilation, strict=True)]
    reach = [k * d for k, d in zip(window.kernel_size, window.dilation, strict=True)]
    size = tuple(move + 2 * far + 2 for move, far in zip(moves, reach, strict=True))
    inputs = make_inputs(window, size, batch=1, heads=1, head_dim=3, rpb=True, seed=seed)  # type: ignore[arg-type]
    crop = {name: x[:, moves[0] :, moves[1] :] if name in "qkv" else x for name, x in inputs.items()}
    inner = (slice(None), slice(reach[0], -reach[0]), slice(reach[1], -reach[1]))
    close(attend(window, crop, backend)[inner], attend(window, inputs, backend)[:, moves[0] :, moves[1] :][inner])


@holds_for(problems(("shift",), bias=False, is_causal=False, dilation=1, query_stride=1), st.sampled_from(BACKENDS))
def test_window_of_the_whole_map_equals_full_attention(problem: Problem, backend: str) -> None:
    _, inputs = problem
    height, width = inputs["k"].shape[1:3]
    q, k, v = (inputs[name].flatten(1, 2).transpose(1, 2) for name in "qkv")
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(1, (height, width))
    close(attend(Window.create((height, width)), inputs, backend), expected)


@holds_for(problems(query_stride=1, bias=False), st.sampled_from(BACKENDS))
def test_dilation_equals_interleaved_maps(problem: Problem, backend: str) -> None:
    window, inputs = problem
    out, dense = attend(window, inputs, backend), replace(window, dilation=(1, 1))
    for row in range(min(window.dilation[0], out.shape[1])):
        for column in range(min(window.dilation[1], out.shape[2])):
            part = (slice(None), slice(row, None, window.dilation[0]), slice(column, None, window.dilation[1]))
            close(out[part], attend(dense, {name: x[part] for name, x in inputs.items()}, backend))


@holds_for(problems(("shift", "mask"), bias=False, query_stride=1))
def test_unfused_pair_equals_fused_attention(problem: Problem) -> None:
    window, inputs = problem
    names = ("kernel_size", "stride", "dilation", "is_causal", "boundary")
    arguments = {name: getattr(window, name) for name in names}
    scores = neighborhood_qk_2d(inputs["q"], inputs["k"], scale=inputs["q"].shape[-1] ** -0.5, **arguments)
    out = neighborhood_av_2d(scores.softmax(-1), inputs["v"], **arguments)
    close(out, attend(window, inputs, "reference"))
