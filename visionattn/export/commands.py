"""The commands of `visionattn export`."""

from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, auto_cli

from visionattn.cli.parsing import ConciseParser
from visionattn.errors import UsageError
from visionattn.export.graph import check_onnx, save_onnx, save_program
from visionattn.export.hub import save_folder
from visionattn.export.network import ImageSize, Network, load_network
from visionattn.output import check_writable
from visionattn.training import Weights
from visionattn.training.branches import Inference
from visionattn.training.preprocessing import describe_preprocessing


def hub(
    checkpoint: Path | None = None,
    model: str | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    output: Path | None = None,
    weights: Weights = "average",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    license: str | None = None,
    overwrite: bool = False,
    data_name: str | None = None,
    evaluation: Path | None = None,
) -> None:
    """Write a folder for timm and the Hugging Face hub: weights, config.json and a model card.

    timm.create_model("local-dir:FOLDER", pretrained=True) reads it.

    Args:
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: download the published weights of the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        output: folder to write.
        weights: for a checkpoint with a moving average: the average or the raw weights.
        dtype: type of the stored weights.
        license: license of the weights for the model card, such as apache-2.0.
        overwrite: allow a folder with other content; files of other names are kept.
        data_name: name of the data set in the model card, if it was a folder of images.
        evaluation: file of eval.py classify --output, whose results the model card shows.

    Raises:
        UsageError: options contradict each other.
        ValueError: a model, checkpoint or folder is missing or does not fit the others.
    """
    if output is None:
        raise UsageError("missing: --output FOLDER")
    network = load_network(checkpoint, model, pretrained, model_kwargs, weights)
    save_folder(network, output, checkpoint, dtype, license, overwrite, data_name, evaluation)
    print(
        f"{output}: {network.spec.model}, {_size(output / 'model.safetensors')} of {dtype} weights ({network.weights})"
    )
    _tell_preprocessing(network)
    print(f'load: timm.create_model("local-dir:{output}", pretrained=True)')


def onnx(
    checkpoint: Path | None = None,
    model: str | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    output: Path | None = None,
    weights: Weights = "average",
    probe: Path | None = None,
    inference: Inference | None = None,
    img_size: ImageSize | None = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Write an ONNX file, after comparing it in onnxruntime with the network.

    FILE.json beside it, and its metadata, hold the preprocessing and the names of the outputs.

    Args:
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: download the published weights of the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        output: .onnx file to write.
        weights: for a checkpoint with a moving average: the average or the raw weights.
        probe: head of eval.py probe --export; it is exported with its backbone as one network.
        inference: for DCAL models, use both branches (combined) or self-attention only (sa).
        img_size: edge of the images in pixels, or [height, width]; by default as trained.
        dynamic_batch: accept batches of any size; otherwise single images.
        opset: version of ONNX's operators; by default torch's choice.
        tolerance: largest difference on images of noise, relative to the largest output.

    Raises:
        UsageError: options contradict each other.
        ValueError: a model or file does not fit, or ONNX cannot hold the network.
    """
    output = _check_output(output, ".onnx")
    check_onnx()
    network = load_network(checkpoint, model, pretrained, model_kwargs, weights, probe, inference, img_size)
    difference = save_onnx(network, output, dynamic_batch, opset, tolerance)
    _tell(output, network, f"onnxruntime differs by {difference}")


def program(
    checkpoint: Path | None = None,
    model: str | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    output: Path | None = None,
    weights: Weights = "average",
    probe: Path | None = None,
    inference: Inference | None = None,
    img_size: ImageSize | None = None,
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
) -> None:
    """Write a program that torch.export.load reads without this package, after comparing it with the network.

    FILE.json beside it holds the preprocessing and the names of the outputs.

    Args:
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: download the published weights of the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        output: .pt2 file to write.
        weights: for a checkpoint with a moving average: the average or the raw weights.
        probe: head of eval.py probe --export; it is exported with its backbone as one network.
        inference: for DCAL models, use both branches (combined) or self-attention only (sa).
        img_size: edge of the images in pixels, or [height, width]; by default as trained.
        dynamic_batch: accept batches of any size; otherwise single images.
        tolerance: largest difference on images of noise, relative to the largest output.

    Raises:
        UsageError: options contradict each other.
        ValueError: a model or file does not fit, or the network cannot be traced.
    """
    output = _check_output(output, ".pt2")
    network = load_network(checkpoint, model, pretrained, model_kwargs, weights, probe, inference, img_size)
    difference = save_program(network, output, dynamic_batch, tolerance)
    _tell(output, network, f"the program differs by {difference}")


COMMANDS: dict[str, Any] = {"hub": hub, "onnx": onnx, "program": program}
DESCRIPTION = (
    "Export models to other formats. Another command, convert IN OUT --arch NAME, converts published NAT and DiNAT "
    "checkpoints to safetensors."
)


class ExportParser(ConciseParser, ArgumentParser):
    """Options from the commands' signatures and docstrings."""


def main(argv: list[str], prog: str = "visionattn export") -> None:
    """Run one export command."""
    if argv[:1] == ["convert"]:
        from visionattn.export import convert

        convert.main(argv[1:], prog=f"{prog} convert")
    else:
        options: dict[str, Any] = {"parser_class": ExportParser, "prog": prog, "description": DESCRIPTION}
        auto_cli(COMMANDS, args=argv, as_positional=False, **options)


def _check_output(path: Path | None, suffix: str) -> Path:
    if path is None:
        raise UsageError(f"missing: --output FILE{suffix}")
    if path.suffix != suffix:
        raise UsageError(f"--output {path} must end in {suffix}")
    check_writable(path)
    return path


def _tell(path: Path, network: Network, found: str) -> None:
    size = "×".join(map(str, network.input_size))
    print(f"{path}: {network.spec.model}, {_size(path)}, images of {size}; {found}")
    _tell_preprocessing(network)
    print(f"{path}.json: how images are prepared, and what the outputs are")


def _tell_preprocessing(network: Network) -> None:
    print(describe_preprocessing(network.spec.preprocessing, network.spec.preprocessing, network.spec.model))


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
