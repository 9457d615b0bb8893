"""Lower bounds on the time of whole models: useful arithmetic at the rate of products, or bytes at the rate of copies.

Bytes of inference: weights and images, read once. Bytes of a training step: weights, gradients and AdamW's two moments,
each read and written once; images, read once; tensors that the forward pass keeps for the backward pass, written and
read once.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kernels.bench.measure import Rates, Stopwatch, measure_rates
from visionattn.layers.prepared import frozen_weights
from visionattn.training.branches import branch_logits

RECOMPUTED = 0.5
"""Of the forward pass of window attention, which keeps no scores: the backward pass computes them again."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of one step.

    Attributes:
        flops: Two per multiply-accumulate of products, convolutions and attention to the keys that each query sees.
        bytes: What must be moved, apart from tensors that are kept for the backward pass.
        parameters: Numbers in the weights.
    """

    flops: float
    bytes: float
    parameters: int

    def floor_ms(self, rates: Rates, kept: float = 0.0) -> float:
        """Return the least time of a step that keeps so many bytes for its backward pass."""
        return rates.floor_ms(self.flops, self.bytes + 2 * kept)


def count_costs(network: str, batch: int, image_bytes: int) -> dict[str, Cost]:
    """Return the cost of inference and of a training step, by direction.

    Arithmetic is counted on the meta device, where no operator is left out. In training, each product of the forward
    pass counts three times, for two gradients; window attention three and a half times.

    Args:
        network: Name of a model.
        batch: Images per step.
        image_bytes: Bytes of a number in an image.
    """
    with warnings.catch_warnings(action="ignore"):
        model: nn.Module = timm.create_model(network).to("meta")
        images = torch.empty(batch, *model.default_cfg["input_size"], device="meta")  # type: ignore[index]
        with torch.no_grad(), frozen_weights(model.eval()):
            inference = _count(lambda: model(images))
        training = _count(lambda: branch_logits(model.train(), images))
    weights = [x.numel() for x in model.parameters()]
    read = images.numel() * image_bytes
    attention = sum(flops for name, flops in training.items() if "attention" in name)
    flops = 3 * sum(training.values()) + RECOMPUTED * attention
    return {
        "inference": Cost(sum(inference.values()), image_bytes * sum(weights) + read, sum(weights)),
        "training": Cost(flops, 8 * 4 * sum(weights) + read, sum(weights)),
    }


def product_rates(device: torch.device, dtype: torch.dtype, quick: bool) -> Rates:
    """Measure the rates of products, the better of `torch.mm` and a 1x1 convolution, and of copies."""
    rates = measure_rates(device, dtype, quick)
    batch, size, dim = (1, 8, 64) if quick else (8, 32, 512) if device.type == "cpu" else (64, 64, 1024)
    images = torch.randn(batch, dim, size, size, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(dim, dim, 1, 1, device=device, dtype=dtype)
    stopwatch = Stopwatch(device)
    with torch.no_grad():
        best = min([stopwatch(lambda: nn.functional.conv2d(images, weight)) for _ in range(3 if quick else 30)]) / 1e3
    flops = 2 * batch * size**2 * dim**2 / best
    return dataclasses.replace(rates, flops_per_second=max(rates.flops_per_second, flops))


def _count(run: Callable[[], object]) -> dict[str, float]:
    """Return the FLOPs of a run by the name of the operator."""
    with FlopCounterMode(display=False) as counter:
        run()
    return {str(operator): float(flops) for operator, flops in counter.get_flop_counts().get("Global", {}).items()}
