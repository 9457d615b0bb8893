"""The commands of `visionattn export`."""

from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, auto_cli

from visionattn.cli.errors import ConciseParser, UsageError
from visionattn.cli.report import check_writable
from visionattn.export.graph import check_onnx, save_onnx, save_program
from visionattn.export.hub import save_folder
from visionattn.export.network import ImageSize, Network, load_network
from visionattn.tasks.checkpoint import Weights
from visionattn.tasks.preprocessing import describe_preprocessing
from visionattn.training.branches import Inference


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
    """Write a folder as timm and the Hugging Face hub have it: weights, config.json and a model card.

    timm.create_model("local-dir:FOLDER", pretrained=True) reads it.

    Args:
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: fetch the weights that are published for the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        output: the folder.
        weights: of a checkpoint that holds a moving average, that average or the raw weights.
        dtype: in which weights are stored.
        license: of the weights, for the model card, such as apache-2.0.
        overwrite: write to a folder that holds something else, too; files of other names stay.
        data_name: what the model card calls the data set, where it was a folder of images.
        evaluation: file that eval.py classify --output wrote, whose figures the model card tells.

    Raises:
        UsageError: options that contradict each other.
        ValueError: a model, checkpoint or folder that is not there or does not fit the others.
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

    FILE.json beside it, and its metadata, say how images are prepared and what the outputs are.

    Args:
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: fetch the weights that are published for the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        output: the .onnx file.
        weights: of a checkpoint that holds a moving average, that average or the raw weights.
        probe: head that eval.py probe --export wrote, of which backbone and head become one network.
        inference: of DCAL's models the answer of both branches (combined) or of self-attention alone (sa).
        img_size: edge of the images in pixels, or [height, width]; by default as trained.
        dynamic_batch: take any number of images, not one at a time.
        opset: version of ONNX's operators; by default torch's choice.
        tolerance: largest difference on images of noise, as a part of the largest output.

    Raises:
        UsageError: options that contradict each other.
        ValueError: a model or file that does not fit, or a network that ONNX cannot hold.
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

    FILE.json beside it says how images are prepared and what the outputs are.

    Args:
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: fetch the weights that are published for the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        output: the .pt2 file.
        weights: of a checkpoint that holds a moving average, that average or the raw weights.
        probe: head that eval.py probe --export wrote, of which backbone and head become one network.
        inference: of DCAL's models the answer of both branches (combined) or of self-attention alone (sa).
        img_size: edge of the images in pixels, or [height, width]; by default as trained.
        dynamic_batch: take any number of images, not one at a time.
        tolerance: largest difference on images of noise, as a part of the largest output.

    Raises:
        UsageError: options that contradict each other.
        ValueError: a model or file that does not fit, or a network that cannot be traced.
    """
    output = _check_output(output, ".pt2")
    network = load_network(checkpoint, model, pretrained, model_kwargs, weights, probe, inference, img_size)
    difference = save_program(network, output, dynamic_batch, tolerance)
    _tell(output, network, f"the program differs by {difference}")


COMMANDS: dict[str, Any] = {"hub": hub, "onnx": onnx, "program": program}
DESCRIPTION = (
    "Writes models in the formats of others. A further command, convert IN OUT --arch NAME, turns published "
    "checkpoints of NAT and DiNAT into safetensors."
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
