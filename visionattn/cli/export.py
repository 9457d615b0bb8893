"""The commands of `visionattn export`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, auto_cli

from visionattn.cli.errors import UsageError
from visionattn.cli.parsing import ConciseParser
from visionattn.data.options import ImageSize
from visionattn.export.card import transformers_gap
from visionattn.export.convert import convert
from visionattn.export.graph import check_onnx, save_onnx, save_program
from visionattn.export.hub import save_folder
from visionattn.export.network import Network, load_network
from visionattn.output import check_writable
from visionattn.training import Weights
from visionattn.training.branches import Inference
from visionattn.training.preprocessing import describe_preprocessing


@dataclass
class Export:
    """Options of every export.

    Args:
        checkpoint: file that train.py or heads wrote; with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: download the published weights of the model.
        model_kwargs: further arguments for the model, such as {"num_classes": 10}.
        output: folder or file to write.
        weights: for a checkpoint with a moving average: the average or the raw weights.
    """

    checkpoint: Path | None = None
    model: str | None = None
    pretrained: bool = False
    model_kwargs: dict[str, Any] | None = None
    output: Path | None = None
    weights: Weights = "average"

    def _load(self, *options: Any) -> Network:
        return load_network(self.checkpoint, self.model, self.pretrained, self.model_kwargs, self.weights, *options)


@dataclass
class Hub(Export):
    """Write a folder for timm and the Hugging Face hub: weights, config.json and a model card.

    timm.create_model("local-dir:FOLDER", pretrained=True) reads it; for classifiers of RGB images also
    transformers.pipeline("image-classification", "FOLDER").

    Args:
        output: folder to write.
        dtype: type of the stored weights.
        license: license of the weights for the model card, such as apache-2.0.
        overwrite: allow a folder with other content; files of other names are kept.
        data_name: name of the data set in the model card, if it was a folder of images.
        evaluation: file of eval.py classify --output, whose results the model card shows.
    """

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    license: str | None = None
    overwrite: bool = False
    data_name: str | None = None
    evaluation: Path | None = None

    def __call__(self) -> None:
        """Write the folder and print what it holds."""
        output, dtype = self.output, self.dtype
        if output is None:
            raise UsageError("missing: --output FOLDER")
        network = self._load()
        save_folder(
            network, output, self.checkpoint, dtype, self.license, self.overwrite, self.data_name, self.evaluation
        )
        size = _size(output / "model.safetensors")
        print(f"{output}: {network.spec.model}, {size} of {dtype} weights ({network.weights})")
        _print_preprocessing(network)
        print(f'load: timm.create_model("local-dir:{output}", pretrained=True)')
        gap = transformers_gap(network)
        use = f'or: transformers.pipeline("image-classification", "{output}")'
        print(f"not for pipelines of transformers: {gap}" if gap else use)


@dataclass
class GraphExport(Export):
    """Options of exports that hold a graph.

    Args:
        probe: head of eval.py probe --export; it is exported with its backbone as one network.
        inference: for DCAL models, use both branches (combined) or self-attention only (sa).
        img_size: edge of the images in pixels, or [height, width]; by default as trained.
        dynamic_batch: accept batches of any size; otherwise single images.
        tolerance: largest difference on images of noise, relative to the largest output.
    """

    probe: Path | None = None
    inference: Inference | None = None
    img_size: ImageSize | None = None
    dynamic_batch: bool = True
    tolerance: float = 1e-4

    def _open(self, suffix: str) -> tuple[Path, Network]:
        path = self.output
        if path is None:
            raise UsageError(f"missing: --output FILE{suffix}")
        if path.suffix != suffix:
            raise UsageError(f"--output {path} must end in {suffix}")
        check_writable(path)
        return path, self._load(self.probe, self.inference, self.img_size)


@dataclass
class Onnx(GraphExport):
    """Write an ONNX file, after comparing it in onnxruntime with the network.

    FILE.json beside it, and its metadata, hold the preprocessing and the names of the outputs.

    Args:
        output: .onnx file to write.
        opset: version of ONNX's operators; by default torch's choice.
    """

    opset: int | None = None

    def __call__(self) -> None:
        """Write the file and print what it holds."""
        check_onnx()
        path, network = self._open(".onnx")
        difference = save_onnx(network, path, self.dynamic_batch, self.opset, self.tolerance)
        _print_graph(path, network, f"onnxruntime differs by {difference}")


@dataclass
class Program(GraphExport):
    """Write a program that torch.export.load reads without this package, after comparing it with the network.

    FILE.json beside it holds the preprocessing and the names of the outputs.

    Args:
        output: .pt2 file to write.
    """

    def __call__(self) -> None:
        """Write the file and print what it holds."""
        path, network = self._open(".pt2")
        difference = save_program(network, path, self.dynamic_batch, self.tolerance)
        _print_graph(path, network, f"the program differs by {difference}")


COMMANDS: dict[str, Any] = {"hub": Hub, "onnx": Onnx, "program": Program}
DESCRIPTION = (
    "Export models to other formats. Another command, convert IN OUT --arch NAME, converts published NAT, DiNAT and "
    "ViT³ checkpoints to safetensors."
)


class ExportParser(ConciseParser, ArgumentParser):
    """Options from the commands' fields and docstrings."""


def main(argv: list[str], prog: str = "visionattn export") -> None:
    """Run one export command."""
    if argv[:1] == ["convert"]:
        _convert(argv[1:], f"{prog} convert")
    else:
        options: dict[str, Any] = {"parser_class": ExportParser, "prog": prog, "description": DESCRIPTION}
        auto_cli(COMMANDS, args=argv, as_positional=False, **options)()


class _ConvertParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise an error for a mistake in the command line, as argparse asks."""
        raise UsageError(message)


def _convert(argv: list[str], prog: str) -> None:
    """Convert a checkpoint and print where every tensor of the file went."""
    parser = _ConvertParser(
        prog=prog,
        description="Convert a published NAT or DiNAT checkpoint to safetensors.",
        epilog="The layouts of the authors' classifiers, of their detection and segmentation backbones and of Hugging "
        "Face's classes are recognised. The result loads through timm.create_model(NAME, pretrained=True, "
        "pretrained_cfg_overlay=dict(file=OUT)).",
    )
    parser.add_argument(
        "source", metavar="IN", type=Path, help="a file of torch.save or safetensors; no code in it runs"
    )
    parser.add_argument("target", metavar="OUT", type=Path, help="the .safetensors file to write")
    parser.add_argument("--arch", metavar="NAME", required=True, help="the architecture of IN, such as dinat_tiny")
    args = parser.parse_args(argv)
    print("\n".join(convert(args.source, args.target, args.arch)))


def _print_graph(path: Path, network: Network, found: str) -> None:
    size = "×".join(map(str, network.input_size))
    print(f"{path}: {network.spec.model}, {_size(path)}, images of {size}; {found}")
    _print_preprocessing(network)
    print(f"{path}.json: how images are prepared, and what the outputs are")


def _print_preprocessing(network: Network) -> None:
    print(describe_preprocessing(network.spec.preprocessing, network.spec.preprocessing, network.spec.model))


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
