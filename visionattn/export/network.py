"""The exported network in evaluation mode, with the facts that its users need."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.checks import reason
from visionattn.data.options import ImageSize, height_and_width
from visionattn.errors import UsageError, one_line
from visionattn.evaluation.source import HEAD, ModelSource
from visionattn.probing.classifier import load_probe
from visionattn.training import ModelSpec, Weights
from visionattn.training.branches import Inference, choose_inference
from visionattn_kernels.provenance import provenance

FORMAT = 1


@dataclass(frozen=True)
class Network:
    """A network, from images `[B, *input_size]` to `[B, num_classes]`, or to features where it has no classes.

    Attributes:
        module: The network, in evaluation mode on the CPU.
        spec: Its architecture, preprocessing and classes.
        weights: Origin of the weights, see `weights_origin`; `probe` for a backbone with a head.
    """

    module: nn.Module
    spec: ModelSpec
    weights: str

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the input, which may be an image as one row of pixels."""
        channels, height, width = self.spec.preprocessing["input_size"]
        return (channels, 1, height * width) if self.spec.preprocessing.get("sequence") else (channels, height, width)

    @property
    def output_name(self) -> str:
        """Name of the output."""
        return "logits" if self.spec.num_classes else "features"

    @property
    def class_names(self) -> list[str]:
        """Names of the outputs; empty if there are none or none are known."""
        return list(self.spec.class_names) if self.spec.num_classes else []

    def images(self, count: int) -> Tensor:
        """Return images of noise, always the same, `[count, *input_size]`."""
        return torch.randn(count, *self.input_size, generator=torch.Generator().manual_seed(count))

    def answer(self, images: Tensor) -> Tensor:
        """Return the output of the network.

        Raises:
            ValueError: It takes none of that size, or gives something else than a tensor.
        """
        try:
            with torch.no_grad():
                found = self.module(images)
        except (AssertionError, RuntimeError, ValueError) as error:
            size = "×".join(map(str, self.input_size))
            raise ValueError(f"{self.spec.model} takes no images of {size}: {one_line(reason(error))}") from error
        if not isinstance(found, Tensor):
            raise ValueError(  # noqa: TRY004  it is the model that does not fit
                f"{self.spec.model} gives a {type(found).__name__}, which cannot be exported: one tensor can"
            )
        return found

    def describe(self) -> dict[str, Any]:
        """Describe input, output, preprocessing and versions as plain values."""
        spec = self.spec
        return {
            "format": FORMAT,
            "model": spec.model,
            "task": spec.task,
            "dataset": spec.dataset,
            "weights": self.weights,
            "output": self.output_name,
            "class_names": self.class_names,
            "multi_label": spec.multi_label,
            "preprocessing": {**spec.to_dict()["preprocessing"], "network_input": list(self.input_size)},
            "versions": provenance(torch.device("cpu"))["versions"],
        }


def load_network(
    checkpoint: Path | None,
    model: str | None,
    pretrained: bool,
    model_kwargs: Mapping[str, Any] | None,
    weights: Weights,
    probe: Path | None = None,
    inference: Inference | None = None,
    img_size: ImageSize | None = None,
) -> Network:
    """Load the network that the options of `visionattn export onnx` name, see `visionattn.cli.export`.

    Raises:
        UsageError: Options contradict each other, or none names a network.
        ValueError: A file or model is missing or does not fit the other options.
    """
    if probe is not None:
        if checkpoint or model or pretrained or model_kwargs or inference:
            raise UsageError("--probe names backbone and weights: leave --checkpoint, --model and their options out")
        if img_size is not None:
            raise UsageError("--img_size: a probe takes images of the size that it was trained on")
        return _load_probe(probe)
    if checkpoint is None and model is None:
        raise UsageError("nothing to export: give --checkpoint FILE, or --model NAME --pretrained")
    if checkpoint is not None and checkpoint.suffix == HEAD:
        raise UsageError(f"{checkpoint} is a head on a frozen backbone: export onnx and program take it as --probe")
    module, spec, origin = ModelSource(checkpoint, model, pretrained, model_kwargs, weights).load()
    if inference is not None:
        choose_inference(module, spec.model, inference)
    if img_size is not None:
        spec = _resize(module, spec, height_and_width(img_size))
    return Network(module.requires_grad_(False), spec, origin.weights)


def _load_probe(path: Path) -> Network:
    classifier = load_probe(path)
    classifier.backbone.amp_dtype = None  # elsewhere, all is computed in single precision
    return Network(classifier.requires_grad_(False), classifier.spec, "probe")


def _resize(module: Any, spec: ModelSpec, size: tuple[int, int]) -> ModelSpec:
    """Change the image size of a model and return its new spec."""
    channels, *trained = spec.preprocessing["input_size"]
    if spec.preprocessing.get("sequence"):
        raise UsageError(f"--img_size: {spec.model} takes sequences of {trained[0] * trained[1]} pixels and no others")
    if min(size) < 1:
        raise UsageError(f"--img_size must be positive, got {size[0]}×{size[1]}")
    if list(size) != trained and hasattr(module, "set_input_size"):
        try:
            module.set_input_size(size)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(f"{spec.model} cannot take images of {size[0]}×{size[1]}: {reason(error)}") from error
    return replace(spec, preprocessing={**spec.preprocessing, "input_size": (channels, *size)})
