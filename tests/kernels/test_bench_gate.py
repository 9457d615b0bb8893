"""The benchmarks' gate and their problems: wrong contenders are never timed, and counts of work are right."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn_kernels import Window, windowed_attention
from visionattn_kernels.testing import make_inputs

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("window", "size", "rpb", "rel"),
    [
        (Window.create(3, dilation=2), (7, 5), True, False),
        (Window.create(6, 4, boundary="zero"), (8, 8), False, True),
        (Window.create(6, 4, boundary="mask"), (7, 9), True, True),
        (Window.create((1, 4)), (1, 11), False, False),
    ],
    ids=str,
)
def test_expected_rows_equal_the_reference(bench, window, size, rpb, rel):
    inputs = make_inputs(window, size, batch=1, rpb=rpb, rel=rel)
    everywhere = windowed_attention(**inputs, window=window, backend="reference")
    queries = torch.tensor([0, 3, size[0] * size[1] - 1])
    rows = bench.gate.attend_rows(inputs, window, queries)
    torch.testing.assert_close(rows, everywhere[0].flatten(0, 1)[queries])


def test_compared_queries_include_the_corners_and_fit_the_bound(bench):
    problem = bench.problems.Problem("", Window.create(3), (20, 30), 1, 2, 8)
    queries = bench.gate.choose_queries(problem, max_scores=50 * 2 * 600)
    assert len(queries.unique()) == len(queries) <= 50
    assert {0, 29, 570, 599} <= set(queries.tolist())
    assert bench.gate.choose_queries(problem, max_scores=2 * 600**2).tolist() == list(range(600))


@pytest.mark.parametrize("spoil", ["output", "gradient of tensor 1", "gradient of tensor 3", "nan"])
def test_gate_names_the_fault(bench, spoil):
    problem = bench.problems.Problem("", Window.create(3), (6, 7), 2, 2, 8, rpb=True)
    tensors = problem.make_tensors(CPU, torch.float32)
    gate = bench.gate.Gate.create(problem, tensors)

    def wrong(q, k, v, rpb):
        if spoil == "gradient of tensor 1":
            k = k.detach() + 0 * k
        if spoil == "gradient of tensor 3":
            rpb = rpb.detach() + 0 * rpb
        out = windowed_attention(q, k, v, problem.window, rpb=rpb)
        return out + {"output": 0.01, "nan": torch.nan}.get(spoil, 0)

    found = gate.errors(wrong, backward=True)
    bad = [name for name, error in found.items() if not error <= gate.tolerance]
    assert bad == ["output" if spoil == "nan" else spoil]


def test_wrong_contender_is_not_timed(bench, monkeypatch, capsys):
    def peers(problem, device):
        yield bench.peers.Contender(
            "gather", "0", lambda: lambda *tensors: tensors[2] + 0 * sum(x.sum() for x in tensors)
        )

    monkeypatch.setattr(bench.attention, "peers", peers)
    reports = []
    monkeypatch.setattr(bench.attention.Report, "add", lambda self, rows: reports.extend(rows))
    arguments = ["--quick", "--threads", "1", "--repeats", "1", "--only", "k3 d1"]
    assert bench.attention.main(arguments) == 1
    assert {row["contender"] for row in reports} == {"visionattn"}
    assert "gather on nat-tiny-1 B2 14x14 h2 c8 k3 d1, forward+backward is wrong" in capsys.readouterr().err


def test_peer_without_backward_is_timed_forward(bench):
    problem = bench.problems.Problem("", Window.create(3), (6, 7), 2, 2, 8)
    attend = bench.peers.gather(problem.window, problem.size, CPU)

    def forward_only(q, k, v):
        if q.requires_grad:
            raise RuntimeError("no backward")
        return attend(q, k, v)

    peer = bench.peers.Contender("peer", "0", lambda: forward_only)
    admitted, all_right = bench.attention.admit([peer], problem, problem.make_tensors(CPU, torch.float32))
    assert all_right
    assert [contender.backward for contender, _ in admitted] == [False]


def test_halo_layer_equals_timm(bench):
    problem = bench.problems.HaloLayer("", Window.create(10, 4, boundary="zero"), (12, 8), 2, 3, 8)
    tensors = problem.make_tensors(CPU, torch.float64)
    runs = bench.peers.ours(problem).build(), bench.peers.timm_layer(problem, CPU)
    ours, theirs = (run(*tensors) for run in runs)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad(out, tensors, grad) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layer", [False, True])
def test_counted_work_is_that_of_the_operators(bench, layer):
    kind = bench.problems.HaloLayer if layer else bench.problems.Problem
    problem = kind("", Window.create(6, 4, boundary="zero"), (12, 8), 2, 3, 8)
    tensors = problem.make_tensors(torch.device("meta"), torch.float32)
    with FlopCounterMode(display=False) as forward:
        out = bench.peers.ours(problem, "tiled").build()(*tensors)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out.sum(), tensors)
    # The layer computes all 11 relative logits of an axis, of which a query reads 6.
    unread = 2 * 2 * 12 * 8 * 3 * 8 * (11 - 6) * 2 * layer
    assert problem.flops("forward") == forward.get_total_flops() - unread
    total = forward.get_total_flops() + backward.get_total_flops()
    assert problem.flops("forward+backward") == total - 3 * unread


def test_floor_is_the_larger_of_arithmetic_and_traffic(bench):
    rates = bench.measure.Rates(flops_per_second=1e9, bytes_per_second=1e8)
    assert rates.floor_ms(2e6, 1e5) == pytest.approx(2)
    assert rates.floor_ms(2e6, 1e6) == pytest.approx(10)


def test_bytes_of_each_pass(bench):
    problem = bench.problems.Problem("", Window.create(3), (4, 4), 1, 1, 8)
    tensors = problem.make_tensors(CPU, torch.float32)
    one = 4 * 4 * 8 * 4
    assert problem.bytes_moved(tensors, "forward") == 4 * one  # q, k, v, out
    # And then: q, k, v, out and its gradient read, three gradients written.
    assert problem.bytes_moved(tensors, "forward+backward") == 12 * one
