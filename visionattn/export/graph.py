"""Networks as graphs that run without this package: ONNX, and programs of `torch.export`.

While a graph is traced, attention and Terminator's products use backend "plain" of `visionattn_kernels`, and tensors
that depend on parameters alone become data. A file is saved only after its outputs were compared with the network's.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from visionattn.errors import one_line
from visionattn.export.network import Network
from visionattn.io import replacing_all
from visionattn.layers.prepared import frozen_weights

INPUT = "image"
TRACED_BATCH = 2  # a batch of one would be traced as a constant
EXTRA_FILE = "visionattn.json"

Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Difference:
    """Difference of outputs between a written network and the original, on images of noise.

    Attributes:
        absolute: The largest difference of two numbers.
        relative: The absolute difference over the largest expected number.
    """

    absolute: float
    relative: float

    def __str__(self) -> str:
        """Return both differences in words."""
        return f"{self.absolute:.1e} (relative {self.relative:.1e})"


def check_onnx() -> None:
    """Check that the packages for ONNX are installed."""
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise ImportError(f'ONNX needs {", ".join(missing)}, not installed here: pip install "visionattn[export]"')


def trace(network: Network, dynamic_batch: bool) -> ExportedProgram:
    """Trace the network to a graph of torch's own operators.

    Args:
        network: The network.
        dynamic_batch: Whether it takes batches of any size, or single images.

    Raises:
        ValueError: The network cannot be traced.
    """
    images = network.images(TRACED_BATCH if dynamic_batch else 1)
    shapes = ({0: Dim.DYNAMIC} if dynamic_batch else None,)
    try:
        with torch.no_grad(), frozen_weights(network.module):
            program = torch.export.export(network.module, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        # Any operation that a graph cannot hold; the first line names it, the rest is advice on debugging.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = "; --dynamic_batch false may do" if dynamic_batch else ""
        raise ValueError(f"torch.export cannot trace {network.spec.model}: {one_line(reason)}{remedy}") from error
    for node in program.graph.nodes:
        if getattr(node.target, "namespace", None) == "visionattn":
            raise ValueError(
                f"{network.spec.model} cannot be exported: no other program knows its operator {node.target.name()}"
            )
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def save_program(network: Network, path: Path, dynamic_batch: bool, tolerance: float) -> Difference:
    """Write a program that `torch.export.load` reads, and a JSON file beside it.

    Args:
        network: The network.
        path: The file, `.pt2`.
        dynamic_batch: See `trace`.
        tolerance: The largest relative difference.

    Raises:
        ValueError: The network cannot be traced, or the program differs from it; nothing is written then.
    """

    def write(target: Path) -> Answer:
        torch.export.save(program, target, extra_files={EXTRA_FILE: json.dumps(network.describe())})
        return torch.export.load(target).module()

    program = trace(network, dynamic_batch)
    return _save(network, path, write, dynamic_batch, tolerance)


def save_onnx(network: Network, path: Path, dynamic_batch: bool, opset: int | None, tolerance: float) -> Difference:
    """Write an ONNX file, with `Network.describe()` in its metadata and in a JSON file beside it.

    Args:
        network: The network.
        path: The file, `.onnx`; weights above 2 GB go to a second file.
        dynamic_batch: See `trace`.
        opset: Version of ONNX's operators; torch's choice by default.
        tolerance: The largest relative difference.

    Raises:
        ImportError: A package for ONNX is missing.
        ValueError: The network cannot be traced, has operators that ONNX lacks, or the file differs from it in
            onnxruntime; nothing is written then.
    """
    check_onnx()
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    program = trace(network, dynamic_batch)
    try:
        with torch.no_grad():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=[network.output_name],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise ValueError(f"{network.spec.model} cannot be written as ONNX: {one_line(reason)}") from error
    assert converted is not None
    model: Any = converted.model
    written = model.opset_imports[""]
    if opset not in (None, written):
        raise ValueError(f"--opset {opset} cannot be had for {network.spec.model}: torch writes {written}")
    ClearMetadataAndDocStringPass()(model)  # paths of this machine, several times as large as the graph
    model.metadata_props.update(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in network.describe().items()}
    )
    for value in (*model.graph.inputs, *model.graph.outputs):
        if dynamic_batch:
            value.shape = type(value.shape)(["batch", *list(value.shape)[1:]])

    def write(target: Path) -> Answer:
        converted.save(target)
        return _open_onnx(target)

    return _save(network, path, write, dynamic_batch, tolerance)


def _open_onnx(path: Path) -> Answer:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def _save(
    network: Network, path: Path, write: Callable[[Path], Answer], dynamic_batch: bool, tolerance: float
) -> Difference:
    """Write aside, compare, and put all files in place."""
    with replacing_all(path.parent) as folder:
        answer = write(folder / path.name)
        found = compare(network, answer, (1, 3) if dynamic_batch else (1,))
        if not found.relative <= tolerance:
            raise ValueError(
                f"{path}: what was exported differs from {network.spec.model} by {found}, more than --tolerance "
                f"{tolerance:g}: nothing was written"
            )
        about = {**network.describe(), "max_difference": {"absolute": found.absolute, "relative": found.relative}}
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{path.name}.json").write_text(text, encoding="utf-8")
    return found


def compare(network: Network, answer: Answer, batches: tuple[int, ...]) -> Difference:
    """Return the largest difference of outputs between the written network and the original, on noise."""
    absolute = largest = 0.0
    for count in batches:
        images = network.images(count)
        expected = network.answer(images)
        with torch.no_grad():
            given = answer(images)
        if given.shape != expected.shape or not given.isfinite().all():
            return Difference(float("inf"), float("inf"))
        absolute = max(absolute, float((given - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return Difference(absolute, absolute / largest if largest else absolute)
