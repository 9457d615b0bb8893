"""``visionattn search``: images of a folder that are most similar to others."""

from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from visionattn.cli.parsing import run_with_words
from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_left_out, print_table
from visionattn.data.loading import OnError
from visionattn.embedding.embedder import EmbedderOptions
from visionattn.embedding.gallery import Hit, SearchResult
from visionattn.embedding.gallery import search as search_images
from visionattn.embedding.nearest import Backend
from visionattn.errors import UserError
from visionattn.evaluation.device import Precision
from visionattn.evaluation.drawing import spread
from visionattn.evaluation.source import find_model
from visionattn.output import check_writable
from visionattn.probing.frozen import Layer
from visionattn.row_files import RowFile, check_row_file
from visionattn.words import counted

SHOWN = 20
"""Hits that are printed."""

COLUMNS: dict[str, type] = {"query": str, "rank": int, "file": str, "similarity": float}


def search(
    query: list[str],
    gallery: Path | None = None,
    index: Path | None = None,
    model: str | None = None,
    topk: int = 10,
    output: Path | None = None,
    sheet: Path | None = None,
    num_examples: int = 20,
    layer: Layer | None = None,
    pooling: Literal["cls", "gap"] | None = None,
    architecture: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    img_size: int | None = None,
    backend: Backend = "auto",
    batch_size: int = 64,
    num_workers: int | None = None,
    on_error: OnError = "skip",
    device: str = "auto",
    precision: Precision | None = None,
) -> None:
    """Find the images of a folder that are most similar to each query, by the cosine of their features.

    An index keeps the features of the gallery. A second search reads only new and changed images, and drops removed
    ones; without --gallery it searches the index as it is. A query that is a file of the gallery does not find itself.

    Args:
        query: image files, and folders of images.
        gallery: folder to search, with images at any depth; they need no labels.
        index: file that keeps the features of the gallery; without it they are computed every time.
        model: a checkpoint, or a registered model, whose published weights are used; by default that of the index.
        topk: number of images for each query.
        output: .csv, .json or .parquet file for query, rank, file and similarity.
        sheet: .png file with a row of images for each query.
        num_examples: number of queries on the sheet, evenly spaced.
        layer: as for embed; by default that of the index, or last.
        pooling: cls or gap; by default that of the index, or cls if there is a class token, else gap.
        architecture: registered model, for a file of weights that does not name it.
        model_kwargs: further arguments for the model, such as {"img_size": 96}.
        img_size: height and width in pixels, by default those of the index, or of the model's preprocessing.
        backend: auto, faiss or torch; auto takes faiss if it is installed and the model is on the CPU. Both are exact.
        batch_size: images per step.
        num_workers: loader processes, by default the number of cores, at most 8.
        on_error: for an image that cannot be read: skip leaves it out and names it at the end, raise stops.
        device: auto, cpu, cuda, cuda:1, …
        precision: 32-true, bf16-mixed or 16-mixed; by default that of the index, or 32-true.
    """
    if output:
        check_row_file(output)
    check_writable(png=sheet)
    given = {"layer": layer, "pooling": pooling, "img_size": img_size, "precision": precision}
    options: EmbedderOptions = {
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[typeddict-item]
        "device": device,
        "batch_size": batch_size,
        "num_workers": num_workers,
        "on_error": on_error,
        "progress": show_progress,
    }
    loaded = None
    if model is not None:
        loaded = find_model(model, architecture, model_kwargs=model_kwargs).load("search with")
    result = search_images(query, gallery=gallery, index=index, model=loaded, topk=topk, backend=backend, **options)
    _print(result, index)
    if output:
        with RowFile(output, COLUMNS) as file:
            file.write(hit._asdict() for hit in result.hits)
        print(f"{output}: {counted(len(result.hits), 'row')}")
    if sheet:
        save_sheet(sheet, result.hits, num_examples, result.index.about["preprocessing"]["input_size"][0])
        print(sheet)
    print_left_out([*(result.changes.unreadable if result.changes else []), *result.unreadable])


def save_sheet(path: Path, hits: list[Hit], number: int, channels: int = 3) -> None:
    """Draw the hits of ``number`` queries, evenly spaced, each in a row behind its query, by the first 3 channels."""
    from visionattn.viz.image import read_pixels
    from visionattn.viz.ranked_lists import Neighbours, save_neighbours

    def show(file: str) -> Any:
        return read_pixels(file, channels)

    rows = [list(found) for _, found in groupby(hits, lambda hit: hit.query)]
    chosen = [rows[place] for place in spread(len(rows), number)]
    try:
        save_neighbours(
            path,
            (
                Neighbours(show(row[0].query), [show(hit.file) for hit in row], [hit.similarity for hit in row])
                for row in chosen
            ),
        )
    except OSError as error:
        name, why = error.filename or "an image", error.strerror or error
        raise UserError(f"cannot draw {name}: {why}; --gallery FOLDER brings the index up to date") from error


def _print(result: SearchResult, index: Path | None) -> None:
    print(result.preparation)
    changes = "" if result.changes is None else ", {:,} new, {:,} changed, {:,} removed".format(*result.changes[:3])
    print(f"{index or 'gallery'}: {counted(len(result.index), 'image')}{changes}")
    several = len({hit.query for hit in result.hits}) > 1
    if shown := [_cells(hit, several) for hit in result.hits[:SHOWN]]:
        print_table(shown, title=None if several else result.hits[0].query)
    if rest := len(result.hits) - len(shown):
        print(f"and {counted(rest, 'row')} more")


def _cells(hit: Hit, with_query: bool) -> dict[str, str]:
    cells = {"rank": str(hit.rank), "file": hit.file, "similarity": f"{hit.similarity:.4f}"}
    return {"query": hit.query, **cells} if with_query else cells


def main(argv: list[str], prog: str = "visionattn") -> None:
    """Run the command, as ``visionattn.cli.errors.run`` expects."""
    run_with_words(search, argv, prog)
