"""The choice of a backend: it follows `ORDER`, says so, and never replaces a backend that is named."""

import csv
import math
import re
import statistics
from pathlib import Path

import pytest
import torch

import visionattn_kernels as vk
from visionattn_kernels import Window
from visionattn_kernels._native.build import unavailable
from visionattn_kernels.attention import dispatch
from visionattn_kernels.attention.dispatch import Order
from visionattn_kernels.attention.problem import Problem, check_problem
from visionattn_kernels.testing import make_inputs

WINDOW = Window.neighborhood(3)


def make_problem(size: tuple[int, int] = (5, 5), dtype: torch.dtype = torch.float32, device: str = "cpu") -> Problem:
    x = make_inputs(WINDOW, size, dtype=dtype, device=device)
    return check_problem(x["q"], x["k"], x["v"], WINDOW, rpb=None, scale=None)


@pytest.fixture
def orders_by_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """One order per condition."""
    orders = (
        Order(("reference", "tiled"), "it is small", measured=True, max_keys=16),
        Order(("gemm", "tiled"), "it is half", measured=True, dtypes=(torch.bfloat16, torch.float16)),
        Order(("flex", "tiled"), "it is for inference", measured=True, needs_grad=False),
        Order(("natten", "tiled", "gemm"), "it is all the same", measured=True),
    )
    monkeypatch.setattr(dispatch, "ORDER", {"cpu": orders, "other": orders})


def chosen(problem: Problem) -> str:
    lines = [line for line in dispatch.explain(problem).splitlines() if ": runs (" in line]
    assert len(lines) == 1
    name = lines[0].partition(":")[0]
    assert dispatch.choose(problem) is dispatch.get_backend(name)
    return name


@pytest.mark.usefixtures("orders_by_condition")
def test_first_order_that_fits_decides() -> None:
    assert chosen(make_problem((4, 4), torch.bfloat16)) == "reference"
    assert chosen(make_problem((4, 5), torch.bfloat16)) == "gemm"
    assert chosen(make_problem((4, 5))) == "tiled"  # natten comes first there, and has no kernel
    with torch.no_grad():
        assert chosen(make_problem((4, 5))) == "flex"


@pytest.mark.usefixtures("orders_by_condition")
def test_explain_names_the_order_and_why_others_do_not_run() -> None:
    x = make_inputs(WINDOW, (5, 5), dtype=torch.float32)
    lines = vk.explain(x["q"], x["k"], x["v"], WINDOW).splitlines()
    assert len(lines) == len(dispatch.BACKENDS)
    assert lines[0] == "natten: cannot run: its kernels run on CUDA devices, and the maps are on cpu"
    assert lines[1].startswith("tiled: runs (tiles of queries")
    assert lines[1].endswith("first that can in the measured order for cpu: it is all the same")
    assert lines[2].startswith("gemm: not chosen: tiled comes first")
    assert "flex: cannot run: it has no gradient on CPUs" in lines
    assert any(line.startswith("reference: not chosen: it runs on request") for line in lines)

    small = {name: t.detach()[:, :4, :4] for name, t in x.items()}
    first = vk.explain(small["q"], small["k"], small["v"], WINDOW).splitlines()[0]
    assert first.endswith("first that can in the measured order for cpu, up to 16 keys: it is small")


def test_explain_of_a_named_backend() -> None:
    x = make_inputs(WINDOW, (5, 5), dtype=torch.float32)
    lines = vk.explain(x["q"], x["k"], x["v"], WINDOW, backend="reference").splitlines()
    assert "tiled: not asked for ('reference' is)" in lines
    (runs,) = (line for line in lines if ": runs (" in line)
    assert runs.startswith("reference: ")
    assert runs.endswith("it is asked for")


def test_backend_argument_is_never_replaced() -> None:
    x = make_inputs(WINDOW, (5, 5), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"no backend can run this problem \(flex: it has no gradient on CPUs\)$"):
        vk.neighborhood_attention_2d(x["q"], x["k"], x["v"], 3, backend="flex")
    with torch.no_grad(), pytest.raises(ValueError, match="flex: it gives no log-sum-exp on CPUs"):
        vk.neighborhood_attention_2d(x["q"], x["k"], x["v"], 3, backend="flex", return_lse=True)


def test_choice_depends_on_return_lse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.ORDER, "cpu", (Order(("flex", "tiled"), "flex cannot return it on CPUs"),))
    x = {name: t.detach() for name, t in make_inputs(WINDOW, (5, 5), dtype=torch.float32).items()}
    assert vk.explain(x["q"], x["k"], x["v"], WINDOW).startswith("flex: runs")
    assert vk.explain(x["q"], x["k"], x["v"], WINDOW, return_lse=True).startswith("flex: cannot run")


def test_every_order_holds_known_backends_and_the_last_fits_every_problem() -> None:
    assert {"cpu", "cuda", dispatch.OTHER} == set(dispatch.ORDER)
    for orders in dispatch.ORDER.values():
        assert {name for order in orders for name in order.names} <= set(dispatch.BACKENDS)
        last = orders[-1]
        assert (last.max_keys, last.dtypes, last.needs_grad) == (None, None, None)
        assert last.names[-1] == "reference"


KERNELS = Path(__file__).parents[2] / "kernels"
MEASURED = [device for device, orders in dispatch.ORDER.items() if any(order.measured for order in orders)]


@pytest.mark.parametrize("device", MEASURED)
def test_measured_order_has_its_provenance_in_the_readme(device: str) -> None:
    section = (KERNELS / "README.md").read_text(encoding="utf-8").partition("### Order of preference")[2]
    assert f"bench/results/backends-{device}.csv" in section
    assert f"kernels.bench.attention --device {device} --backend" in section


@pytest.mark.parametrize("device", MEASURED)
def test_measured_order_is_that_of_its_rows(device: str) -> None:
    """Backends stand by the geometric mean of their times, over the rows that fall under the order."""
    path = KERNELS / f"bench/results/backends-{device}.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    for order in dispatch.ORDER[device]:
        logs: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in order.names}
        for row in rows:
            height, width = re.search(r" (\d+)x(\d+) ", row["problem"]).groups()  # type: ignore[union-attr]
            fits = (
                (order.max_keys is None or int(height) * int(width) <= order.max_keys)
                and (order.dtypes is None or getattr(torch, row["dtype"]) in order.dtypes)
                and (order.needs_grad is None or ("backward" in row["direction"]) == order.needs_grad)
            )
            if fits and row["contender"] in logs:
                where = (row["problem"], row["direction"], row["dtype"])
                logs[row["contender"]][where] = math.log(float(row["median_ms"]))
        everywhere = set.intersection(*(set(found) for found in logs.values()))
        assert everywhere
        means = {name: statistics.mean(found[where] for where in everywhere) for name, found in logs.items()}
        assert list(order.names) == sorted(means, key=means.__getitem__), order


def test_device_without_an_order_has_the_order_of_others() -> None:
    assert dispatch.find_order(make_problem(device="meta")) in dispatch.ORDER[dispatch.OTHER]


def test_choice_breaks_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CUDA device, where those that are imported when considered come first."""
    monkeypatch.setitem(dispatch.ORDER, "cpu", (Order(("natten", "flex", "tiled"), "the first two cannot"),))
    x = make_inputs(WINDOW, (6, 5), dtype=torch.float32)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> object:
        return vk.neighborhood_attention_2d(q, k, v, 3, return_lse=True)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*x.values()), attend(*x.values()))


def test_compiled_graphs_hold_fused_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no operators of export, though the compiler of torch 2.11 takes `is_exporting()` for true everywhere."""
    held: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        held.extend(str(node.target) for node in graph.graph.nodes if "visionattn" in str(node.target))
        return graph

    @torch.compile(backend=compiler, fullgraph=True)
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> object:
        return vk.neighborhood_attention_2d(q, k, v, 3), vk.hyper_zzw_local(q[:, 0], k[0, 0, :, :, :3])

    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    attend(*(x.detach() for x in make_inputs(WINDOW, (5, 5), batch=2, heads=5, dtype=torch.float32).values()))
    compiled = [] if unavailable("stacked") else ["visionattn.correlate_stacked.default"]
    assert held == [f"visionattn.{'native' if compiled else 'tiled'}_attention.default", *compiled]


def test_compiled_gradients_leave_out_unseen_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above with torch 2.11: plain operators of an exported graph would multiply it by zero."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    q, k, v = torch.randn(3, 1, 1, 8, 1, 4).unbind()
    k[0, 0, 7] = torch.nan

    @torch.compile(backend="aot_eager", fullgraph=True)
    def attend(q: torch.Tensor) -> object:
        return vk.neighborhood_attention_2d(q, k, v, (1, 3), backend="plain")

    q.requires_grad_()
    out = attend(q)
    out.sum().backward()
    assert q.grad is not None
    assert q.grad[0, 0, :6].isfinite().all()


def test_flex_is_refused_inside_a_graph_on_a_cpu() -> None:
    x = {name: t.detach() for name, t in make_inputs(WINDOW, (6, 5), dtype=torch.float32).items()}

    def describe(q: torch.Tensor) -> str | None:
        return dispatch.get_backend("flex").can_run(check_problem(q, x["k"], x["v"], WINDOW, rpb=None, scale=None))

    assert describe(x["q"]) is None
    inside = torch.compile(describe, fullgraph=True, backend="eager")(x["q"])
    assert inside == "it does not compile as a part of another graph on CPUs"
