"""NATTEN's old functions: against the published definition written out, the fused operator, and NATTEN where it can."""

import inspect
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import visionattn_kernels as vk
import visionattn_kernels.compat.natten as compat
from visionattn_kernels.compat.natten import functional as na

# id: size, kernel size, dilation, causal; one number per axis
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]] = {
    "L11-k3": ((11,), (3,), (1,), (False,)),
    "L14-k5-dil2": ((14,), (5,), (2,), (False,)),
    "L17-k3-dil4": ((17,), (3,), (4,), (False,)),
    "L9-k9": ((9,), (9,), (1,), (False,)),
    "L13-k3-dil3-causal": ((13,), (3,), (3,), (True,)),
    "H7xW8-k3": ((7, 8), (3, 3), (1, 1), (False, False)),
    "H9xW8-k3-dil2": ((9, 8), (3, 3), (2, 2), (False, False)),
    "H6xW11-k3x5-dil2x1": ((6, 11), (3, 5), (2, 1), (False, False)),
    "H6xW7-k4": ((6, 7), (4, 4), (1, 1), (False, False)),
    "H6xW9-k3-dil1x3-causal01": ((6, 9), (3, 3), (1, 3), (False, True)),
}
all_cases = pytest.mark.parametrize(("size", "kernel", "dilation", "causal"), CASES.values(), ids=CASES.keys())
HEADS, HEAD_DIM = 2, 5


def axis_keys(i: int, length: int, kernel: int, dilation: int, causal: bool) -> list[int | None]:
    """Keys of query i in order, as the papers say it: inside its dilation group, clamped at both borders."""
    members = list(range(i % dilation, length, dilation))
    place = members.index(i)
    start = max(place - kernel + 1, 0) if causal else min(max(place - kernel // 2, 0), len(members) - kernel)
    keys = members[start : place + 1 if causal else start + kernel]
    return [*keys, *[None] * (kernel - len(keys))]


def tabulate(size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], causal: Sequence[bool]) -> Any:
    """Flat key, flat entry of the bias table, and existence of each slot: three `[queries, slots]`."""
    keys, entries, exists = [], [], []
    for query in product(*map(range, size)):
        per_axis = [axis_keys(*axis) for axis in zip(query, size, kernel, dilation, causal, strict=True)]
        key_row, entry_row, exists_row = [], [], []
        for slot in product(*per_axis):
            exists_row.append(None not in slot)
            key, entry = 0, 0
            for position, q, n, k, d in zip(slot, query, size, kernel, dilation, strict=True):
                key = key * n + (position or 0)
                offset = 0 if position is None else (position - q) // d + k - 1
                entry = entry * (2 * k - 1) + offset
            key_row.append(key)
            entry_row.append(entry)
        keys.append(key_row), entries.append(entry_row), exists.append(exists_row)
    return torch.tensor(keys), torch.tensor(entries), torch.tensor(exists)


def draw(size: Sequence[int], kernel: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys, values `[2, heads, *size, head_dim]`, and a bias table."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, HEADS, *size, HEAD_DIM)] * 3 + [(HEADS, *(2 * k - 1 for k in kernel))]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def scores_by_definition(q: Tensor, k: Tensor, rpb: Tensor | None, tables: Any) -> Tensor:
    keys, entries, exists = tables
    dense = q.flatten(2, -2) @ k.flatten(2, -2).mT
    scores = dense.gather(-1, keys.expand(*dense.shape[:2], -1, -1))
    if rpb is not None:
        scores = scores + rpb.flatten(1)[:, entries]
    return scores.masked_fill(~exists, -torch.inf).unflatten(2, q.shape[2:-1])


def sums_by_definition(attn: Tensor, v: Tensor, tables: Any) -> Tensor:
    keys, _, exists = tables
    weights = (attn.flatten(2, -2) * exists).double()
    dense = weights.new_zeros(*weights.shape[:3], len(keys)).scatter_add(-1, keys.expand_as(weights), weights)
    return (dense @ v.flatten(2, -2)).unflatten(2, v.shape[2:-1])


def functions(size: Sequence[int]) -> tuple[Any, Any, Any]:
    return (na.na1d_qk, na.na1d_av, na.na1d) if len(size) == 1 else (na.na2d_qk, na.na2d_av, na.na2d)


def assert_gradients_match(ours: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    torch.testing.assert_close(ours, expected)
    seen = expected.detach().isfinite()
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * seen
    for x, y in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(x, y)


@all_cases
@pytest.mark.parametrize("biased", [True, False])
def test_scores_match_the_definition(size: Any, kernel: Any, dilation: Any, causal: Any, biased: bool) -> None:
    q, k, _, rpb = draw(size, kernel)
    inputs = [q, k, *([rpb] if biased else [])]
    table = rpb if biased else None
    ours = functions(size)[0](q, k, kernel, dilation, is_causal=causal, rpb=table)
    assert ours.is_contiguous()
    assert_gradients_match(ours, scores_by_definition(q, k, table, tabulate(size, kernel, dilation, causal)), inputs)


@all_cases
def test_sums_match_the_definition(size: Any, kernel: Any, dilation: Any, causal: Any) -> None:
    tables = tabulate(size, kernel, dilation, causal)
    v = draw(size, kernel)[2]
    attn = torch.randn(2, HEADS, *size, tables[0].shape[1], dtype=torch.float64, requires_grad=True)
    ours = functions(size)[1](attn, v, kernel, dilation, is_causal=causal)
    assert_gradients_match(ours, sums_by_definition(attn, v, tables), [attn, v])


@all_cases
def test_gradients_equal_those_of_the_fused_operator(size: Any, kernel: Any, dilation: Any, causal: Any) -> None:
    """Scores, softmax and sums in NATTEN's layout against this library's operator, and against the fused `na*d`."""
    inputs = q, k, v, rpb = draw(size, kernel)
    qk, av, fused = functions(size)
    scores = qk(q * 0.3, k, kernel, dilation, is_causal=causal, rpb=rpb)
    ours = av(scores.softmax(-1), v, kernel, dilation, is_causal=causal)

    heads_last = [x.movedim(1, -2) for x in (q, k, v)]
    if len(size) == 1:
        expected = vk.neighborhood_attention_1d(*heads_last, kernel[0], 1, dilation[0], causal[0], rpb, 0.3)
    else:
        expected = vk.neighborhood_attention_2d(*heads_last, kernel, 1, dilation, causal, rpb, 0.3)
    assert_gradients_match(ours, expected.movedim(-2, 1), inputs)
    assert torch.equal(fused(*heads_last, kernel, dilation, causal, rpb, 0.3), expected)


def test_additional_keys_share_the_softmax() -> None:
    size, kernel = (6, 7), (3, 3)
    q, k, v, rpb = draw(size, kernel)
    extra = [torch.randn(2, HEADS, 4, HEAD_DIM, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    scores = na.na2d_qk(q * 0.3, k, 3, 1, extra[0], rpb=rpb)
    torch.testing.assert_close(scores[..., 9:], torch.einsum("bnyxc,bnmc->bnyxm", q * 0.3, extra[0]))
    ours = na.na2d_av(scores.softmax(-1), v, 3, 1, extra[1])

    heads_last = [x.movedim(1, -2) for x in (q, k, v)]
    extra_k, extra_v = (x.transpose(1, 2) for x in extra)
    fused = na.na2d(*heads_last, 3, rpb=rpb, scale=0.3, additional_keys=extra_k, additional_values=extra_v)
    assert_gradients_match(ours, fused.movedim(-2, 1), [q, k, v, rpb, *extra])


def test_second_derivatives() -> None:
    q, k, v, rpb = (x.detach()[:1, :1].requires_grad_() if x.dim() > 3 else x for x in draw((5, 4), (3, 3)))
    rpb = rpb.detach()[:1].requires_grad_()

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> Tensor:
        return na.natten2dav(na.natten2dqkrpb(q, k, rpb, 3, 1).softmax(-1), v, 3, 1)

    assert torch.autograd.gradgradcheck(attend, (q, k, v, rpb), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    inputs = draw((9, 8), (3, 3), dtype=dtype)
    outs = []
    for q, k, v, rpb in (inputs, [x.double() for x in inputs]):
        outs.append(na.natten2dav(na.natten2dqkrpb(q, k, rpb, 3, 2).softmax(-1), v, 3, 2))
    assert outs[0].dtype == dtype
    torch.testing.assert_close(outs[0].double(), outs[1], atol=0.03, rtol=0.03)


def test_autocast() -> None:
    q, k, v, rpb = draw((9, 8), (3, 3), dtype=torch.float32)
    extra = torch.randn(2, HEADS, 4, HEAD_DIM)
    with torch.autocast("cpu", torch.bfloat16):
        scores = na.na2d_qk(q, k, 3, additional_keys=extra, rpb=rpb)
        assert scores.dtype == torch.bfloat16
        assert na.na2d_av(scores.softmax(-1), v, 3, additional_values=extra).dtype == torch.bfloat16


def test_vmap() -> None:
    q, k, v, rpb = (x.detach() for x in draw((9, 8), (3, 3)))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return na.natten2dav(na.natten2dqkrpb(q, k, rpb, 3, 2).softmax(-1), v, 3, 2)

    stacked = [torch.stack([x, 2 * x]) for x in (q, k, v)]
    mapped = torch.func.vmap(attend)(*stacked)
    for i in range(2):
        torch.testing.assert_close(mapped[i], attend(*(x[i] for x in stacked)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    q, k, v, rpb = (x.detach() for x in draw((9, 8), (3, 3), dtype=dtype))
    tolerance = {"atol": 1e-3, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    outs = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float64)):
        q_, k_, v_, rpb_ = (x.to(device, kind) for x in (q, k, v, rpb))
        unfused = na.natten2dav(na.natten2dqkrpb(q_, k_, rpb_, 3, 2).softmax(-1), v_, 3, 2)
        fused = na.na2d(*(x.movedim(1, -2) for x in (q_, k_, v_)), 3, 2, rpb=rpb_, scale=1.0).movedim(-2, 1)
        outs.append(torch.stack([unfused, fused]).cpu().double())
    torch.testing.assert_close(outs[0], outs[1], **tolerance)


def test_batch_may_be_empty() -> None:
    q, k, v = torch.empty(3, 0, HEADS, 6, 7, HEAD_DIM).unbind()
    assert na.natten2dav(na.natten2dqk(q, k, 3, 1), v, 3, 1).shape == q.shape


def test_names_of_each_release_compute_the_same() -> None:
    q, k, v, rpb = draw((9, 8), (3, 3))
    for with_bias in (na.natten2dqkrpb(q, k, rpb, 3, 2), na.na2d_qk_with_bias(q, k, rpb, 3, 2)):
        assert torch.equal(with_bias, na.na2d_qk(q, k, 3, 2, rpb=rpb))
    assert torch.equal(na.natten2dqk(q, k, 3, 2), na.na2d_qk(q, k, (3, 3), (2, 2)))
    attn = na.na2d_qk(q, k, 3, 2).softmax(-1)
    assert torch.equal(na.natten2dav(attn, v, 3, 2), na.na2d_av(attn, v, 3, 2))
    q, k, v, rpb = draw((9,), (3,))
    for with_bias in (na.natten1dqkrpb(q, k, rpb, 3, 2), na.na1d_qk_with_bias(q, k, rpb, 3, 2)):
        assert torch.equal(with_bias, na.na1d_qk(q, k, 3, 2, rpb=rpb))
    assert torch.equal(na.natten1dqk(q, k, 3, 2), na.na1d_qk(q, k, (3,), (2,)))
    attn = na.na1d_qk(q, k, 3, 2).softmax(-1)
    assert torch.equal(na.natten1dav(attn, v, 3, 2), na.na1d_av(attn, v, 3, 2))


SIGNATURES = {
    "natten{}dqkrpb": "query key rpb kernel_size dilation",  # 0.14.5 to 0.17
    "natten{}dqk": "query key kernel_size dilation",
    "natten{}dav": "attn value kernel_size dilation",
    "na{}d_qk_with_bias": "query key bias kernel_size dilation additional_keys",  # 0.15
    "na{}d_qk": "query key kernel_size dilation additional_keys is_causal rpb",  # 0.17; in 0.15 without the last two
    "na{}d_av": "attn value kernel_size dilation additional_values is_causal",
    "na{}d": "query key value kernel_size dilation is_causal rpb scale additional_keys additional_values "
    "xformers_kwargs",
}


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize(("name", "arguments"), SIGNATURES.items())
def test_argument_order(name: str, arguments: str, axes: int) -> None:
    assert list(inspect.signature(getattr(na, name.format(axes))).parameters) == arguments.split()


def test_fused_functions_equal_natten() -> None:
    """NATTEN on a CPU computes forward, in float32, without bias."""
    natten = pytest.importorskip("natten", reason="natten is not installed here")
    for name in ("L14-k5-dil2", "H6xW11-k3x5-dil2x1", "H6xW9-k3-dil1x3-causal01"):
        size, kernel, dilation, causal = CASES[name]
        q, k, v = torch.randn(3, 2, *size, 2, 16)
        attend = natten.na1d if len(size) == 1 else natten.na2d
        expected = attend(q, k, v, kernel, dilation=dilation, is_causal=causal)
        qk, av, fused = functions(size)
        torch.testing.assert_close(fused(q, k, v, kernel, dilation, causal), expected, atol=2e-5, rtol=1e-4)
        q, k, v = (x.movedim(-2, 1) for x in (q, k, v))
        scores = qk(q * 16**-0.5, k, kernel, dilation, is_causal=causal)
        ours = av(scores.softmax(-1), v, kernel, dilation, is_causal=causal)
        torch.testing.assert_close(ours.movedim(1, -2), expected, atol=2e-5, rtol=1e-4)


def maps(*shape: int) -> Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "natten2dqkrpb",
            (maps(1, 2, 6, 9, 4), maps(1, 2, 6, 9, 4), None, 7, 1),
            r"<= 6 on axis 0 of a map of 6x9.*got 7 \* 1: pad",
        ),
        (
            "natten1dqkrpb",
            (maps(1, 2, 9, 4), maps(1, 2, 9, 4), None, 5, 2),
            r"<= 9 on axis 0 of a map of 9,.*got 5 \* 2",
        ),
        ("na2d", (maps(1, 6, 9, 2, 4),) * 3 + (3, 4), r"<= 6 on axis 0.*got 3 \* 4"),
        ("na2d_qk", (maps(2, 6, 9, 4), maps(2, 6, 9, 4), 3), r"query must be \[B, heads, H, W, head_dim\]; got shape"),
        ("na2d_qk", (maps(1, 2, 6, 9, 4), maps(1, 2, 6, 8, 4), 3), r"key must have shape \[1, 2, 6, 9, 4\] to fit"),
        ("na2d_qk", (maps(1, 2, 6, 9, 4),) * 2 + ("3",), "kernel_size must be one int, or 2 of them, one per axis"),
        ("na2d_qk", (maps(1, 2, 6, 9, 4),) * 2 + ((3, 3, 3),), r"kernel_size must be one int.*got \(3, 3, 3\)"),
        ("na2d_qk", (maps(1, 2, 6, 9, 4),) * 2 + (3, 0), "dilation must be an int >= 1"),
        ("na2d_qk", (maps(1, 2, 6, 9, 4),) * 2 + (3, 1, None, 1), "is_causal must be one bool"),
        ("natten2dqkrpb", (maps(1, 2, 6, 9, 4),) * 2 + (maps(2, 3, 3), 3, 1), r"rpb must have shape \[2, 5, 5\]"),
        ("na2d_qk", (maps(1, 2, 6, 9, 4),) * 2 + (3, 1, maps(1, 2, 5, 3)), r"additional_keys must .* \[1, 2, 5, 4\]"),
        ("natten2dav", (maps(1, 2, 6, 9, 25), maps(1, 2, 6, 9, 4), 3, 1), r"attn must have shape \[1, 2, 6, 9, 9\]"),
        ("na1d", (maps(1, 9, 2, 4),) * 3 + (3, 1, False, None, None, None, None, {"p": 1}), "xformers_kwargs must be"),
    ],
)
def test_error_names_the_argument(name: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(na, name)(*arguments)


def test_nested_tensors_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 9, 4), torch.zeros(2, 7, 4)])
    with pytest.raises(ValueError, match="query must be a dense tensor"):
        na.na1d_qk(nested, nested, 3)


@pytest.mark.parametrize("name", ["na3d", "na3d_qk", "na3d_av", "natten3dqkrpb", "natten3dqk", "natten3dav"])
def test_three_axes_are_refused(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{name}: 3-D neighborhood attention is not implemented here"):
        getattr(na, name)(1, 2, kernel_size=3)
    with pytest.raises(NotImplementedError, match="NeighborhoodAttention3D: 3-D"):
        compat.NeighborhoodAttention3D(32, 2, kernel_size=3)
