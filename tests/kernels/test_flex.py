"""The flex backend against the reference: what compiles on a CPU (forward alone), and what it refuses."""

import inspect
import shutil

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.attention import flex
from visionattn_kernels.attention.problem import check_problem
from visionattn_kernels.testing import TINY, assert_matches_reference, make_inputs

# id: window, map, and what else the inputs hold
PROBLEMS: dict[str, tuple[Window, tuple[int, int], dict[str, object]]] = {
    "mask-H16xW12-b8h3-r2": (Window.halo(8, 3, query_stride=2), (16, 12), {"batch": 1}),
    "H19xW17-k5x3-dil2x3-d24-v5-rpb": (
        Window.neighborhood((5, 3), dilation=(2, 3)),
        (19, 17),
        {"head_dim": 24, "v_dim": 5, "rpb": True},
    ),
    "H56xW56-k7-d32": (Window.neighborhood(7), (56, 56), {"batch": 1, "head_dim": 32}),
    "H4xW5-k7-larger-rpb": (Window.neighborhood(7), (4, 5), {"rpb": True}),
    "H12xW10-k5-s5-causal01-rpb": (Window.neighborhood(5, 5, is_causal=(False, True)), (12, 10), {"rpb": True}),
    "H1xW17-k5-v16": (Window.neighborhood((1, 5)), (1, 17), {"v_dim": 16}),
}
ON_CUDA = {name: (w, s, {"head_dim": 32, **o, "v_dim": 16}) for name, (w, s, o) in PROBLEMS.items()}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch finds no C++ compiler here")


def check_forward(window: Window, size: tuple[int, int], options: dict[str, object], dtype: torch.dtype) -> None:
    inputs = {name: x.detach() for name, x in make_inputs(window, size, **options).items()}  # type: ignore[arg-type]
    rounded = {name: x.to(dtype) for name, x in inputs.items()}
    truth, eager = (
        windowed_attention(**{n: x.to(d) for n, x in rounded.items()}, window=window, backend="reference")  # type: ignore[arg-type]
        for d in (torch.float64, dtype)
    )
    ours = windowed_attention(**rounded, window=window, backend="flex")  # type: ignore[arg-type]
    assert ours.dtype == dtype  # type: ignore[union-attr]
    bound = max(2 * (eager - truth).abs().max().item(), TINY[dtype] * truth.abs().max().item())  # type: ignore[operator, union-attr]
    assert (ours - truth).abs().max().item() <= bound  # type: ignore[operator, union-attr]


def check_that_nan_reaches_those_who_see_it(window: Window, size: tuple[int, int], options: dict[str, object]) -> None:
    x = {name: t.detach() for name, t in make_inputs(window, size, **options, dtype=torch.float32).items()}  # type: ignore[arg-type]
    x["k"][0, 0, 0, 0, 0] = x["v"][0, 0, 0, 0, -1] = x["q"][0, -1, -1, 0, 0] = torch.nan
    found, expected = (windowed_attention(**x, window=window, backend=name) for name in ("flex", "native"))  # type: ignore[arg-type]
    lost = [out.isfinite().all(-1, keepdim=True) for out in (found, expected)]  # type: ignore[union-attr]
    assert torch.equal(*lost)
    torch.testing.assert_close(found.where(lost[0], 0), expected.where(lost[0], 0))  # type: ignore[union-attr]


@needs_compiler
@pytest.mark.parametrize("name", [name for name, (_, size, _) in PROBLEMS.items() if max(size) < 50])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_forward_on_a_cpu_before_it_is_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To compile a problem takes 10 seconds: one is compiled by default."""
    monkeypatch.setattr(flex, "_compile", lambda *_: flex._attend)
    window, size, options = PROBLEMS[name]
    check_forward(window, size, options, torch.float32)
    check_that_nan_reaches_those_who_see_it(window, size, options)


@needs_compiler
def test_forward_on_a_cpu() -> None:
    window, size, options = PROBLEMS["mask-H16xW12-b8h3-r2"]
    check_forward(window, size, options, torch.float32)
    check_that_nan_reaches_those_who_see_it(window, size, options)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("window", "size", "options"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_forward_of_all_problems_on_a_cpu(
    window: Window, size: tuple[int, int], options: dict[str, object], dtype: torch.dtype
) -> None:
    check_forward(window, size, options, dtype)


@needs_compiler
@pytest.mark.slow
def test_many_shapes_stay_compiled() -> None:
    """Torch runs a function uncompiled after 8 recompilations, with all scores of the map in memory."""
    for length in range(2, 13):
        check_forward(Window.neighborhood((1, 2)), (1, length), {"batch": 1, "heads": 1}, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("window", "size", "options"), ON_CUDA.values(), ids=ON_CUDA.keys())
def test_matches_reference_on_cuda(
    window: Window, size: tuple[int, int], options: dict[str, object], dtype: torch.dtype
) -> None:
    inputs = make_inputs(window, size, device="cuda", **options)  # type: ignore[arg-type]
    assert_matches_reference(window, inputs, "flex", dtype)


@pytest.mark.parametrize(
    ("window", "size"),
    [
        (Window.neighborhood(7), (20, 33)),
        (Window.neighborhood(3, dilation=(2, 3)), (19, 17)),
        (Window.halo(8, 3, query_stride=2), (35, 12)),
        (Window.neighborhood(5, 5, is_causal=(False, True)), (12, 30)),
        (Window.neighborhood(9), (4, 5)),
    ],
    ids=str,
)
def test_block_mask_is_that_of_every_pair(
    window: Window, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made in steps of bounded memory, it equals torch's, made from all pairs at once, and the window's definition."""
    monkeypatch.setattr(flex, "PAIRS_PER_STEP", 1)
    ours = inspect.unwrap(flex.make_block_mask)(window, size, torch.device("cpu"))
    (height, width), keys = window.num_queries(size), size[0] * size[1]
    theirs = create_block_mask(ours.mask_mod, None, None, height * width, keys, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)

    see_h, see_w = (axis.visible(length)[0] for axis, length in zip(window.axes, size, strict=True))
    expected = (see_h[:, None, :, None] & see_w[:, None]).flatten(2).flatten(0, 1)
    query, key = torch.arange(height * width)[:, None], torch.arange(keys)
    assert torch.equal(ours.mask_mod(0, 0, query, key), expected)


def test_block_masks_are_cached() -> None:
    device = torch.device("cpu")
    first = flex.make_block_mask(Window.neighborhood(3), (5, 6), device)
    assert flex.make_block_mask(Window.neighborhood(3), (5, 6), device) is first


def test_flex_compiles_as_a_part_of_a_graph_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where nothing refuses it."""
    monkeypatch.setattr(flex, "can_run", lambda _: None)
    window = Window.neighborhood(3)

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor, backend: str = "flex") -> object:
        return windowed_attention(q, k, v, window, rpb=rpb, backend=backend)

    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    for height in (6, 7):
        inputs = make_inputs(window, (height, 5), batch=1, rpb=True, dtype=torch.float32)
        x = [t.detach() for t in inputs.values()]
        torch.testing.assert_close(compiled(*x), attend(*x, "reference"))


ZERO = Window.halo(4, 1, "zero")


@pytest.mark.parametrize(
    ("window", "options", "reason"),
    [
        (Window.neighborhood(3), {"rel": True}, "it does not take rel_h"),
        (Window.neighborhood(3), {"num_extra": 1}, "it does not take extra_k"),
        (Window.neighborhood(3), {"dtype": torch.float64}, "dtype torch.float64 is not one of"),
        (Window.neighborhood(3), {"batch": 0}, "it does not take empty tensors"),
        (Window.neighborhood(3), {}, "it has no gradient on CPUs"),
        (ZERO, {}, "it has no keys beyond the border"),
        (Window.neighborhood(3), {"device": "meta"}, "the maps are on meta"),
    ],
)
def test_can_run_gives_a_reason(window: Window, options: dict[str, object], reason: str) -> None:
    x = make_inputs(window, (8, 8), **{"dtype": torch.float32, **options})  # type: ignore[arg-type]
    found = flex.can_run(check_problem(**x, window=window, rpb=None, scale=None))  # type: ignore[arg-type]
    assert found is not None
    assert reason in found
