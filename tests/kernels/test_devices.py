"""Backends on devices that are not there: fake tensors pose as theirs, and torch is told of a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import visionattn_kernels as vk
from visionattn_kernels import Window
from visionattn_kernels._native.build import unavailable
from visionattn_kernels.attention import devices, flex
from visionattn_kernels.attention.problem import check_problem

WINDOW = Window.neighborhood(3)
ON_A_CPU = "tiled" if unavailable("attention") else "native"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that gives torch a GPU of some compute capability, with Triton or without."""

    def pose(major: int, minor: int = 0, triton: bool = True, hip: str | None = None) -> None:
        properties = SimpleNamespace(major=major, minor=minor, gcnArchName="gfx90a" if hip else "")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(devices, "TRITON_INSTALLED", triton)

    return pose


def explain_on(device: str) -> list[str]:
    """Explain a problem that only flex and what runs anywhere might take, on a device that is not there."""
    with FakeTensorMode():
        q = torch.empty(1, 6, 5, 2, 32, device=device)
        return vk.explain(q, q, q, WINDOW).splitlines()


def choice(lines: list[str]) -> str:
    (line,) = (line for line in lines if ": runs (" in line)
    return line


def test_gpu_with_triton_runs_triton(gpu: Callable[..., None]) -> None:
    gpu(8)
    lines = explain_on("cuda")
    assert choice(lines).startswith("triton: runs")
    assert "in the unmeasured order for cuda: " in choice(lines)


def test_gpu_without_triton_runs_tiled(gpu: Callable[..., None]) -> None:
    gpu(9, triton=False)
    lines = explain_on("cuda")
    assert "triton: cannot run: triton is not installed" in lines
    assert "flex: cannot run: torch's compiler needs Triton: triton is not installed" in lines
    assert choice(lines).startswith("tiled: runs")


def test_gpu_below_capability_8_runs_tiled(gpu: Callable[..., None]) -> None:
    gpu(7, 5)
    lines = explain_on("cuda")
    assert "triton: cannot run: compute capability 7.5 is below 8.0" in lines
    assert "flex: cannot run: torch's compiler needs Triton: compute capability 7.5 is below 8.0" in lines
    assert choice(lines).startswith("tiled: runs")


def test_flex_runs_on_a_gpu_that_triton_compiles_for(gpu: Callable[..., None]) -> None:
    gpu(8)
    with FakeTensorMode():
        q = torch.empty(1, 6, 5, 2, 32, device="cuda")
        assert flex.can_run(check_problem(q, q, q, WINDOW, rpb=None, scale=None)) is None


def test_flex_on_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    q = torch.zeros(1, 6, 5, 2, 16)
    found = flex.can_run(check_problem(q, q, q, WINDOW, rpb=None, scale=None))
    assert found == "torch's compiler finds no C++ compiler: install one or set $CXX"


def test_rocm_runs_triton_and_says_that_it_is_untried(gpu: Callable[..., None]) -> None:
    gpu(9, hip="7.0")
    line = choice(explain_on("cuda"))
    assert line.startswith("triton: runs")
    assert "in the unmeasured order for cuda (ROCm, untried): " in line


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_devices_run_tiled_and_say_that_they_are_untried(device: str) -> None:
    line = choice(explain_on(device))
    assert line.startswith("tiled: runs")
    assert f"in the unmeasured order for {device} (untried): " in line


@pytest.mark.skipif(not devices.TRITON_INSTALLED, reason="triton is not installed")
def test_triton_launches_on_the_device_of_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever device is the current one."""
    from visionattn_kernels.attention.triton import tuning

    launched: list[object] = []
    current: list[object] = []

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    with FakeTensorMode():
        q = torch.empty(1, 6, 5, 2, 32, device="cuda:1")
        problem = check_problem(q, q, q, WINDOW, rpb=None, scale=None)
    for _ in range(2):
        tuning.run("forward", problem, lambda _: launched.append(current[-1]))
    assert launched == [torch.device("cuda", 1)] * 2


class Attend(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        out = vk.neighborhood_attention_2d(q, q, q, 3)
        assert isinstance(out, Tensor)
        return out


def operators_of(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target).split(".")[1] for node in graph.graph.nodes if "visionattn" in str(node.target)]


@pytest.mark.parametrize(
    ("device", "capability", "backend"),
    [("cpu", 0, ON_A_CPU), ("cuda", 9, "triton"), ("cuda", 7, "tiled"), ("xpu", 0, "tiled"), ("mps", 0, "tiled")],
)
def test_compiled_graph_holds_the_fused_operator_of_the_device(
    device: str, capability: int, backend: str, gpu: Callable[..., None]
) -> None:
    """No backend is named: torch 2.11 once compiled what is for export alone, without a word."""
    gpu(capability)
    held: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        held.extend(operators_of(graph))
        return graph

    torch.compiler.reset()
    with FakeTensorMode():
        torch.compile(Attend(), backend=compiler, fullgraph=True)(torch.empty(1, 6, 5, 2, 32, device=device))
    assert held == [f"{backend}_attention"]


@pytest.mark.parametrize("strict", [True, False])
def test_exported_graph_holds_plain_operators(strict: bool) -> None:
    exported = torch.export.export(Attend(), (torch.zeros(1, 6, 5, 2, 32),), strict=strict)
    assert operators_of(exported.graph_module) == []
