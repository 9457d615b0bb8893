"""The automatic choice: it follows the measured tables, says so, and never replaces a backend named explicitly."""

import csv
import json
import math
import re
import statistics
from pathlib import Path

import pytest
import torch

import visionattn_kernels as vk
from visionattn_kernels import Window, choices, dispatch
from visionattn_kernels.attention import check_problem
from visionattn_kernels.backends.native.build import unavailable
from visionattn_kernels.problem import Problem
from visionattn_kernels.testing import make_inputs

WINDOW = Window.create(3)


def make_problem(size: tuple[int, int] = (5, 5), dtype: torch.dtype = torch.float32, device: str = "cpu") -> Problem:
    x = make_inputs(WINDOW, size, dtype=dtype, device=device)
    return check_problem(x["q"], x["k"], x["v"], WINDOW, rpb=None, scale=None)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table with one rule per condition."""
    rules = [
        {"order": ["reference", "tiled"], "because": "it is small", "max_keys": 16},
        {"order": ["gemm", "tiled"], "because": "it is half", "dtypes": ["bfloat16", "float16"]},
        {"order": ["flex", "tiled"], "because": "it is for inference", "needs_grad": False},
        {"order": ["natten", "tiled", "gemm"], "because": "it is all the same"},
    ]
    monkeypatch.setattr(
        choices, "RULES", choices.read({name: {"measured": True, "rules": rules} for name in ("cpu", "other")})
    )


def chosen(problem: Problem) -> str:
    lines = [line for line in dispatch.explain(problem).splitlines() if ": runs (" in line]
    assert len(lines) == 1
    name = lines[0].partition(":")[0]
    assert dispatch.choose(problem) is dispatch.get_backend(name)
    return name


@pytest.mark.usefixtures("table")
def test_the_first_rule_that_fits_decides() -> None:
    assert chosen(make_problem((4, 4), torch.bfloat16)) == "reference"
    assert chosen(make_problem((4, 5), torch.bfloat16)) == "gemm"
    assert chosen(make_problem((4, 5))) == "tiled"  # natten comes first there, and has no kernel
    with torch.no_grad():
        assert chosen(make_problem((4, 5))) == "flex"


@pytest.mark.usefixtures("table")
def test_explain_names_the_rule_and_why_the_others_do_not_run() -> None:
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


def test_a_named_backend_is_never_replaced() -> None:
    x = make_inputs(WINDOW, (5, 5), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"no backend can run this problem \(flex: it has no gradient on CPUs\)$"):
        vk.neighborhood_attention_2d(x["q"], x["k"], x["v"], 3, backend="flex")
    with torch.no_grad(), pytest.raises(ValueError, match="flex: it gives no log-sum-exp on CPUs"):
        vk.neighborhood_attention_2d(x["q"], x["k"], x["v"], 3, backend="flex", return_lse=True)


def test_the_choice_hears_of_the_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [{"order": ["flex", "tiled"], "because": "flex cannot return it on CPUs"}]
    monkeypatch.setattr(
        choices, "RULES", choices.read({name: {"measured": False, "rules": rules} for name in ("cpu", "other")})
    )
    x = {name: t.detach() for name, t in make_inputs(WINDOW, (5, 5), dtype=torch.float32).items()}
    assert vk.explain(x["q"], x["k"], x["v"], WINDOW).startswith("flex: runs")
    assert vk.explain(x["q"], x["k"], x["v"], WINDOW, return_lse=True).startswith("flex: cannot run")


def test_the_tables_hold_known_backends_and_end_with_a_rule_for_everything() -> None:
    assert {"cpu", "cuda", choices.OTHER} <= set(choices.RULES)
    for rules in choices.RULES.values():
        assert {name for rule in rules for name in rule.order} <= set(dispatch.BACKENDS)
        last = rules[-1]
        assert (last.max_keys, last.dtypes, last.needs_grad) == (None, None, None)
        assert last.order[-1] == "reference"


TABLES = json.loads(choices.FILE.read_text())
MEASURED = [device for device, table in TABLES.items() if table["measured"]]


@pytest.mark.parametrize("device", MEASURED)
def test_measured_tables_say_where_they_come_from(device: str) -> None:
    source = TABLES[device]["source"]
    assert all(source[name] for name in ("commands", "hardware", "versions"))


@pytest.mark.parametrize("device", MEASURED)
def test_measured_orders_are_those_of_their_rows(device: str) -> None:
    """Backends stand by the geometric mean of their times, over the rows that fall under the rule."""
    path = Path(__file__).parents[2] / TABLES[device]["source"]["rows"]
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    for rule in choices.RULES[device]:
        logs: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in rule.order}
        for row in rows:
            height, width = re.search(r" (\d+)x(\d+) ", row["problem"]).groups()  # type: ignore[union-attr]
            fits = (
                (rule.max_keys is None or int(height) * int(width) <= rule.max_keys)
                and (rule.dtypes is None or row["dtype"] in rule.dtypes)
                and (rule.needs_grad is None or ("backward" in row["direction"]) == rule.needs_grad)
            )
            if fits and row["contender"] in logs:
                where = (row["problem"], row["direction"], row["dtype"])
                logs[row["contender"]][where] = math.log(float(row["median_ms"]))
        everywhere = set.intersection(*(set(found) for found in logs.values()))
        assert everywhere
        means = {name: statistics.mean(found[where] for where in everywhere) for name, found in logs.items()}
        assert list(rule.order) == sorted(means, key=means.__getitem__), rule


def test_devices_without_a_table_have_the_order_of_others() -> None:
    assert choices.find(make_problem(device="meta")) in choices.RULES[choices.OTHER]


def test_considering_backends_breaks_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CUDA device, where those that are imported when considered come first."""
    rules = [{"order": ["natten", "flex", "tiled"], "because": "the first two cannot"}]
    monkeypatch.setattr(
        choices, "RULES", choices.read({name: {"measured": False, "rules": rules} for name in ("cpu", "other")})
    )
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
    compiled = [] if unavailable() else ["visionattn.correlate_stacked.default"]
    assert held == [f"visionattn.{'native' if compiled else 'tiled'}_attention.default", *compiled]


def test_compiled_gradients_leave_out_what_no_query_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above with torch 2.11: plain operators of an exported graph would multiply it by zero."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    q, k, v = torch.randn(3, 1, 1, 8, 1, 4).unbind()
    k[0, 0, 7] = torch.nan

    @torch.compile(backend="aot_eager", fullgraph=True)
    def attend(q: torch.Tensor) -> object:
        return vk.neighborhood_attention_2d(q, k, v, (1, 3), backend="plain")

    q.requires_grad_()
    out = attend(q)
    assert isinstance(out, torch.Tensor)
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
