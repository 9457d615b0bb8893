"""Search for the images of a folder that are most similar to others."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Unpack

from visionattn.checks import check_range
from visionattn.embedding.embedder import Embedder, EmbedderOptions, as_loaded, part_of
from visionattn.embedding.index import Changes, Index
from visionattn.embedding.nearest import Backend, check_backend, nearest
from visionattn.errors import UserError
from visionattn.evaluation.source import LoadedModel
from visionattn.io import as_text
from visionattn.output import check_writable


class Hit(NamedTuple):
    """An image of the gallery that was found for a query; ranks begin with 1, similarities are cosines."""

    query: str
    rank: int
    file: str
    similarity: float


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Images that were found.

    Attributes:
        hits: All hits, by query and rank.
        index: The index of the gallery.
        changes: Update of the index; None without a gallery.
        unreadable: A line for each query that could not be read.
        preparation: Preparation of the images in words.
    """

    hits: list[Hit]
    index: Index
    changes: Changes | None
    unreadable: list[str]
    preparation: str


def search(
    query: str | Path | Iterable[str | Path],
    *,
    gallery: str | Path | None = None,
    index: str | Path | None = None,
    model: str | Path | LoadedModel | None = None,
    topk: int = 10,
    backend: Backend = "auto",
    **options: Unpack[EmbedderOptions],
) -> SearchResult:
    """Find the images of a gallery that are most similar to each query, by the cosine of their features.

    A query that is itself a file of the gallery is not among its own hits; copies of it are. Images of equal similarity
    are in the order of their names.

    Args:
        query: Images, or folders of images; nothing, to bring the index up to date only.
        gallery: Folder of images at any depth; without it, the index is searched as it is.
        index: File of features. It is made if it is missing, and extended by new and changed images of the gallery;
            removed images are dropped.
        model: Name of a registered model, path of a checkpoint, or what `visionattn.load_model` returns; by default
            the model of the index.
        topk: Number of hits for each query.
        backend: "faiss", "torch", or "auto": faiss if it is installed and the model is on the CPU. The hits are equal.
        **options: Options of `visionattn.embedding.Embedder`; by default those of the index.

    Raises:
        FileNotFoundError: There is neither a gallery nor an index.
        OSError: An image cannot be read and ``on_error`` is "raise".
        ValueError: An index of another model, random weights, no images, or a number out of its bounds.
    """
    check_range("topk", topk, 1, error=UserError)
    check_backend(backend)
    if gallery is None and index is None:
        raise UserError("nothing to search in: give --gallery FOLDER, --index FILE, or both")
    if gallery is not None:
        check_writable(index)
    known = Index.load(index) if index is not None and (gallery is None or Path(index).expanduser().exists()) else None
    if known is not None:
        embedder = _open_again(known, index or "", model, options)
    elif model is not None:
        loaded = as_loaded(model)
        loaded.require_weights("search with")
        embedder = Embedder(loaded, normalize=True, **options)
    else:
        raise UserError("a new index needs a model: give --model NAME")
    if embedder.pooling == "tokens":
        raise UserError("--pooling tokens: a search compares one vector for each image; take cls or gap")
    found, changes = known or Index.empty(embedder), None
    if gallery is not None:
        found, changes = found.updated(embedder, gallery, None if index is None else part_of(index))
        moved = known is None or known.root.absolute() != found.root.absolute()
        if index is not None and (moved or any(changes[:3])):
            found.save(index)
    files = embedder.list_images(query)
    places = found.places(files)
    read = found.read(embedder, files, places)
    # One more than wanted, in case a query finds itself.
    similarities, nearby = nearest(read.features, found.features, topk + 1, backend=backend, device=embedder.device)
    hits = list[Hit]()
    for number, *ranked in zip(read.numbers, similarities.tolist(), nearby.tolist(), strict=True):
        others = [(similarity, place) for similarity, place in zip(*ranked, strict=True) if place != places[number]]
        hits += [
            Hit(as_text(files[number]), rank, found.file(place), similarity)
            for rank, (similarity, place) in enumerate(others[:topk], 1)
        ]
    return SearchResult(hits, found, changes, read.unreadable, embedder.preparation)


def _open_again(
    index: Index, path: str | Path, model: str | Path | LoadedModel | None, options: EmbedderOptions
) -> Embedder:
    """Return the embedder of an index, with its options where none are given; raise a ValueError if it is another."""
    about = index.about
    loaded = index.load_model() if model is None else as_loaded(model)
    index.check_model({"model": loaded.spec.model}, path)
    height, width = about["preprocessing"]["input_size"][1:]
    merged: EmbedderOptions = {
        "layer": about["layer"],
        "pooling": about["pooling"],
        "precision": about["precision"],
        "img_size": height if height == width else None,
        **options,
    }
    embedder = Embedder(loaded, normalize=True, **merged)
    index.check_model(embedder.about, path)
    if index.features.shape[1:] != embedder.shape and embedder.pooling != "tokens":
        raise UserError(f"{path} has vectors of other lengths than its model: remove it and build it again")
    return embedder
