"""Run one model in a process of its own, which reads commands as lines of JSON and answers each with a line.

    python kernels/bench/model_worker.py '{"network": "nat_pico", "batch": 2, "device": "cpu", "threads": 1}'

The first answer describes the model. `models.py` starts this file by its path, also under an earlier revision of this
project. It therefore imports what both revisions have, by either name, and `measure.py` from the file beside it.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.profiler import record_function

import visionattn
from visionattn.layers import prepared

try:
    from visionattn.training import branches, objective, optimization
except ImportError:  # version 0.1.0
    from visionattn.tasks import branches, objective, optimization  # type: ignore[no-redef, attr-defined]
try:
    from visionattn.training.devices import suit_device
except ImportError:  # version 0.1.0

    def suit_device(model: nn.Module, device: torch.device, half: bool) -> torch.memory_format:  # type: ignore[misc]
        """Change nothing."""
        return torch.contiguous_format


LR, WEIGHT_DECAY, MOMENTUM = 1e-3, 0.05, 0.9
"""Defaults of `train.py fit` in both revisions."""

CLUSTERS = 10
WARM_MS = 200
"""A step that is shorter is timed after another one, so that what other processes left in the caches does not count."""

PHASES = ("forward", "backward", "optimizer")
ATTENTION = re.compile(r"(visionattn|aten)::.*(attention|window_(qk|av|atx))")
KINDS = {
    "products": "mm$|mv$|convolution|conv2d|linear|matmul|correlate|multiply_stacked|convolve_maps",
    "norms": "norm|moments|standardize",
    "activations": "elu|silu|sigmoid|softmax|softplus|tanh|hardswish",
    "copies": "copy|clone|contiguous|cat|stack|^to$|view|permute|empty|fill|zero|pad|as_strided|reshape|transpose"
    "|expand|select|slice|roll|gather|index|scatter|resize",
}
"""Patterns of the names of operators, in the order in which they are tried; other operators are elementwise."""


def load_measure() -> Any:
    """Load `measure.py` from the file beside this one, whichever revision is installed."""
    spec = importlib.util.spec_from_file_location("measure", Path(__file__).with_name("measure.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def create_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Create the optimizer that `train.py fit` uses by default in this revision."""
    create: Any = optimization.create_optimizer
    if hasattr(optimization, "Optimization"):
        return create(model, optimization.Optimization(), LR)  # type: ignore[no-any-return]
    return create(model, "adamw", LR, WEIGHT_DECAY, MOMENTUM, None, {})  # type: ignore[no-any-return]


class Worker:
    """A model, random images, and the commands on them; a public method is a command."""

    def __init__(self, network: str, batch: int, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        self.measure = load_measure()
        self.stopwatch = self.measure.Stopwatch(self.device)
        self.model: nn.Module = timm.create_model(network).to(self.device)
        size: tuple[int, int, int] = self.model.default_cfg["input_size"]  # type: ignore[index, assignment]
        self.shape = (batch, *size)
        self.running: tuple[str, str] | None = None
        self.stack = ExitStack()
        self.step: Callable[[], Any] = lambda: None

    def time(self, direction: str, dtype: str) -> float:
        """Return the milliseconds of one step."""
        self._choose(direction, dtype)
        first: float = self.stopwatch(self.step)
        return float(self.stopwatch(self.step)) if first < WARM_MS else first

    def peak(self, direction: str, dtype: str) -> int:
        """Return the most bytes of tensors in a step, beyond those before it."""
        self._choose(direction, dtype)
        return int(self.measure.peak_bytes(self.step, self.device))

    def kept(self, dtype: str) -> int:
        """Return the bytes that a training step keeps for its backward pass, without parameters and images."""
        images, labels = self.batch(0)
        model = copy.deepcopy(self.model).train()
        known = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers(), images)}
        found: dict[int, Tensor] = {}

        def keep(x: Tensor) -> Tensor:
            if x.untyped_storage().data_ptr() not in known:
                found[x.untyped_storage().data_ptr()] = x  # held, so that no other storage gets its address
            return x

        with saved_tensors_hooks(keep, lambda x: x):
            self._loss(model, images, labels, dtype)
        return sum(x.untyped_storage().nbytes() for x in found.values())

    def save(self, path: str) -> None:
        """Write the weights to a file."""
        torch.save(self.model.state_dict(), path)

    def load(self, path: str) -> None:
        """Read the weights from a file."""
        self.model.load_state_dict(torch.load(path, weights_only=True, map_location=self.device))

    def gradients(self, path: str) -> float:
        """Return the float32 loss of a batch in training mode; write the gradients of all parameters to a file."""
        model = copy.deepcopy(self.model).train()
        layout = suit_device(model, self.device, half=False)
        images, labels = self.batch(0)
        loss = self._loss(model, images.contiguous(memory_format=layout), labels, "float32")
        loss.backward()
        torch.save({name: x.grad for name, x in model.named_parameters() if x.grad is not None}, path)
        return loss.item()

    def curve(self, steps: int, dtype: str) -> list[float]:
        """Return the losses of training steps from the current weights, which stay as they are."""
        step = self._training_step(copy.deepcopy(self.model), dtype)
        return [float(step(*self.batch(number))) for number in range(steps)]

    def profile(self, steps: int, dtype: str) -> dict[str, float]:
        """Return the share of each kind of operation in the host's time of training steps."""
        self._choose("training", dtype)
        self.step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(steps):
                self.step()
        totals: dict[str, float] = {}
        for event in profile.events() or ():
            kind = kind_of(event)
            totals[kind] = totals.get(kind, 0.0) + event.self_cpu_time_total
        return {kind: time / sum(totals.values()) for kind, time in totals.items()}

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the same images, of random clusters, and their classes for the same number in every process."""
        random = torch.Generator().manual_seed(number)
        centres = 0.1 * torch.randn(CLUSTERS, *self.shape[1:], generator=torch.Generator().manual_seed(0))
        labels = torch.randint(CLUSTERS, self.shape[:1], generator=random)
        images = centres[labels] + torch.randn(self.shape, generator=random)
        torch.manual_seed(number)  # of dropout, stochastic depth, and pairs of images
        return images.to(self.device), labels.to(self.device)

    def _choose(self, direction: str, dtype: str) -> None:
        """Make the step of a direction and dtype the current one, and run it once."""
        if self.running == (direction, dtype):
            return
        self.running = (direction, dtype)
        self.stack.close()
        self.step = lambda: None  # lets go of the former model
        images, labels = self.batch(0)
        model = copy.deepcopy(self.model)
        if direction == "training":
            step = self._training_step(model, dtype)
            self.step = lambda: step(images, labels)
        else:
            model.eval()
            frozen = getattr(prepared, "frozen_weights", None) or prepared.prepared_as_constants
            self.stack.enter_context(frozen(model))

            def infer() -> None:
                with torch.inference_mode(), self._autocast(dtype):
                    model(images)

            self.step = infer
        self.step()

    def _training_step(self, model: nn.Module, dtype: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a step of forward, cross-entropy, backward and optimizer, which returns the loss."""
        model.train()
        layout = suit_device(model, self.device, dtype != "float32")
        optimizer = create_optimizer(model)
        update_buffers = getattr(objective, "update_buffers", lambda model: None)

        def step(images: Tensor, labels: Tensor) -> Tensor:
            with record_function(PHASES[0]):
                loss = self._loss(model, images.contiguous(memory_format=layout), labels, dtype)
            with record_function(PHASES[1]):
                loss.backward()
            with record_function(PHASES[2]):
                update_buffers(model)
                optimizer.step()
                optimizer.zero_grad()
            return loss.detach()

        return step

    def _autocast(self, dtype: str) -> torch.autocast:
        return torch.autocast(self.device.type, getattr(torch, dtype), enabled=dtype != "float32")

    def _loss(self, model: nn.Module, images: Tensor, labels: Tensor, dtype: str) -> Tensor:
        """Return the cross-entropy, summed over branches, and the losses that modules add, as `train.py fit` does."""
        with self._autocast(dtype):
            logits = branches.branch_logits(model, images)
            losses = [F.cross_entropy(objective.widened(x), labels) for x in logits.values()]
            return torch.stack([*losses, *objective.extra_losses(model).values()]).sum()


def kind_of(event: Any) -> str:
    """Return the kind of a profiled operation, from its name and the names of the operations around it."""
    names = [event.name]
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    phase = next((name for name in reversed(names) if name in PHASES), "")
    if phase == "optimizer":
        return phase
    if any(map(ATTENTION.match, names)):
        return f"attention, {phase}"
    space, _, name = names[0].partition("::")
    if space not in ("aten", "visionattn", "mkldnn"):
        return "rest"
    for kind, pattern in KINDS.items():
        if re.search(pattern, name):
            return f"{kind}, {phase}" if kind == "products" else kind
    return "elementwise"


def main() -> int:
    """Answer commands until standard input ends."""
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    if not timm.is_model(settings["network"]):
        answer(answer=None)
        return 0
    worker = Worker(**settings)
    folder = Path(inspect.getfile(visionattn)).parent
    answer(answer={"folder": str(folder), "visionattn": version("visionattn"), "timm": timm.__version__})
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer(answer=getattr(worker, command)(*arguments))
        except Exception as error:
            answer(error=(str(error).strip().splitlines() or [type(error).__name__])[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
