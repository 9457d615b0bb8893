"""The benchmarks' gate and their problems: wrong contenders are never timed, and counts of work are right."""

import dataclasses

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
    def peers(problem, device, dtype):
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


def test_problem_on_which_this_library_fails_is_an_error_and_the_others_are_timed(bench, monkeypatch, capsys):
    ours = bench.attention.ours

    def fail_with_bias(problem, backend=None):
        contender = ours(problem, backend)
        return dataclasses.replace(contender, build=lambda: 1 / 0) if problem.rpb else contender

    monkeypatch.setattr(bench.attention, "ours", fail_with_bias)
    reports = []
    monkeypatch.setattr(bench.attention.Report, "add", lambda self, rows: reports.extend(rows))
    arguments = ["--quick", "--threads", "1", "--repeats", "1", "--only", "k3 d1,k3 d4", "--peers", "gather"]
    assert bench.attention.main(arguments) == 1
    assert {row["problem"][-2:] for row in reports} == {"d1", "d4"}
    assert "cannot run visionattn on nat-tiny-1 B2 14x14 h2 c8 k3 d1 rpb, forward: division" in capsys.readouterr().err


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


def test_gate_of_a_long_sequence_is_bounded_by_its_queries(bench):
    """All 32,768 x 32,768 pairs of positions would take 8 GiB."""
    problem = bench.problems.Problem("", Window.create((1, 512)), (1, 1 << 15), 1, 1, 8)
    tensors = problem.make_tensors(CPU, torch.float32)
    queries = bench.gate.choose_queries(problem, max_scores=1 << 18)
    assert len(queries) <= 8
    peak = bench.measure.peak_bytes(
        lambda: bench.gate.attend_rows(problem.arguments(*tensors), problem.window, queries), CPU
    )
    assert peak < 64 << 20


def test_gathered_bytes_count_keys_values_and_gradients(bench):
    problem = bench.problems.Problem("", Window.create(3), (5, 6), 2, 4, 8)
    assert bench.peers.gathered_bytes(problem, torch.float16) == 4 * 2 * (2 * 5 * 6) * (4 * 8) * 9
    cuda = torch.device("cuda")
    peers = {
        problem.name: [c.name for c in bench.peers.peers(problem, cuda, torch.bfloat16)]
        for problem in bench.problems.attention_problems(cuda, None, False)
    }
    assert "gather" in peers["nat-tiny-1 B128 56x56 h2 c32 k7 d1"]
    assert "gather" not in peers["na1d B1 L32768 h1 c128 w2048"]


@pytest.mark.parametrize("dilation", [1, 3])
def test_flex_peer_has_the_rule_of_the_window(bench, dilation):
    """An axis that no multiple of the dilation fits: dilation groups of two lengths."""
    axis, length = Window.create(4, dilation=dilation).axes[0], 17
    visible, offset = axis.visible(length)
    positions = torch.arange(length)
    seen, entry = bench.peers.relate(axis, length, positions[:, None], positions[None, :])
    assert torch.equal(seen, visible)
    assert torch.equal(entry[seen], offset[seen])


def test_natten_that_cannot_be_imported_is_left_out(bench, monkeypatch, capsys):
    def refuse(name):
        raise OSError(f"lib{name}.so: undefined symbol\nmore")

    monkeypatch.setattr(bench.peers, "package_version", lambda name: "0.21.7")
    monkeypatch.setattr(bench.peers.importlib, "import_module", refuse)
    bench.peers.find_natten.cache_clear()
    problem = bench.problems.Problem("", Window.create(3), (6, 7), 2, 2, 8)
    assert "natten" not in [c.name for c in bench.peers.peers(problem, CPU, torch.float32)]
    message = "natten 0.21.7 cannot be imported and is left out: libnatten.so: undefined symbol\n"
    assert capsys.readouterr().err == message
    bench.peers.find_natten.cache_clear()


class Device:
    """The clock of a device that takes 1 ms to empty its cache, and of a host that takes `host_ms` to queue a run."""

    def __init__(self, host_ms, run_ms):
        self.host_ms, self.run_ms, self.host, self.device = host_ms, run_ms, 0.0, 0.0

    def work(self, milliseconds):
        self.device = max(self.device, self.host) + milliseconds

    def zero_(self):
        self.work(1.0)

    def run(self):
        for _ in range(2):
            self.host += self.host_ms / 2
            self.work(self.run_ms / 2)

    def synchronize(self):
        self.host = max(self.host, self.device)

    def event(self, enable_timing):
        return Event(self)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = max(self.device.device, self.device.host)

    def query(self):
        return self.at <= self.device.host

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.mark.parametrize(
    ("host_ms", "expected_ms", "writes"),
    [(0.5, 2.0, 1), (3.0, 2.0, 4), (1000.0, 937.0, 64)],
    ids=["hidden-by-one-write", "hidden-by-more", "too-slow-to-hide"],
)
def test_stopwatch_hides_the_host(bench, monkeypatch, host_ms, expected_ms, writes):
    device = Device(host_ms, run_ms=2.0)
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "synchronize", device.synchronize)
    stopwatch = bench.measure.Stopwatch(CPU)
    stopwatch.flush = device
    assert stopwatch(device.run) == expected_ms
    assert stopwatch.writes == writes


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
