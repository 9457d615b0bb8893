"""``visionattn embed``: features of images in a file."""

from pathlib import Path
from typing import Any

from visionattn.cli.errors import UsageError
from visionattn.cli.parsing import run_with_words
from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_left_out
from visionattn.data.loading import OnError
from visionattn.embedding.embedder import Dtype, Embedder, Pooling, embed_to_file
from visionattn.embedding.files import check_format
from visionattn.evaluation.device import Precision
from visionattn.evaluation.source import find_model
from visionattn.probing.frozen import Layer
from visionattn.words import counted


def embed(
    model: str,
    images: list[str],
    output: Path | None = None,
    layer: Layer = "last",
    pooling: Pooling | None = None,
    normalize: bool = False,
    dtype: Dtype = "float32",
    architecture: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    img_size: int | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    on_error: OnError = "skip",
    device: str = "auto",
    precision: Precision = "32-true",
) -> None:
    """Write the features of images to a file, with the description of the model.

    Any number of images takes the same memory. A run that was killed resumes from OUTPUT.part when it is started again.

    Args:
        model: a checkpoint, another file of weights, or a registered model, whose published weights are used.
        images: image files, and folders of images at any depth.
        output: .npz or .parquet file to write; visionattn.Embeddings.load reads it.
        layer: last, or the number of a block (in hierarchical models, of a stage), from the last if negative.
        pooling: cls, gap (the mean patch) or tokens; by default cls if there is a class token, else gap.
        normalize: scale features to length 1.
        dtype: type of the features.
        architecture: registered model, for a file of weights that does not name it.
        model_kwargs: further arguments for the model, such as {"img_size": 96}.
        img_size: height and width in pixels, by default those of the model's preprocessing.
        batch_size: images per step.
        num_workers: loader processes, by default the number of cores, at most 8.
        on_error: for an image that cannot be read: skip leaves it out and names it at the end, raise stops.
        device: auto, cpu, cuda, cuda:1, …
        precision: 32-true, bf16-mixed or 16-mixed.
    """
    if output is None:
        raise UsageError("missing: --output FILE.npz or --output FILE.parquet")
    check_format(output)
    embedder = Embedder(
        find_model(model, architecture, model_kwargs=model_kwargs).load("embed"),
        layer=layer,
        pooling=pooling,
        normalize=normalize,
        img_size=img_size,
        device=device,
        precision=precision,
        batch_size=batch_size,
        num_workers=num_workers,
        on_error=on_error,
        progress=show_progress,
    )
    print(embedder.preparation)
    found = embed_to_file(output, embedder, images, dtype)
    shape = " × ".join(f"{length:,}" for length in embedder.shape)
    kind = f"{shape} features of layer {embedder.layer} ({embedder.pooling})"
    print(f"{output}: {counted(len(found.files), 'image')}, {kind}")
    print_left_out(found.unreadable)


def main(argv: list[str], prog: str = "visionattn") -> None:
    """Run the command, as ``visionattn.cli.errors.run`` expects."""
    run_with_words(embed, argv, prog)
