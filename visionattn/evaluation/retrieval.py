"""Re-identification: how well features find the images of a person or vehicle."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visionattn.evaluation.as_trained import IdentityOptions, identity_dataset, open_identities
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.loop import Result, evaluate
from visionattn.evaluation.source import LoadedModel
from visionattn.layers.prepared import frozen_weights
from visionattn.metrics.gallery import Gallery, measure, merge
from visionattn.progress import ShowProgress, adding, no_progress
from visionattn.training import ModelSpec
from visionattn.training.branches import Inference, choose_inference, reid_features
from visionattn.training.preprocessing import describe_preprocessing

AS_TRAINED = IdentityOptions()


@dataclass(frozen=True, eq=False, kw_only=True)
class RetrievalResult(Result):
    """Retrieval of identities on a data set; more in `Result`.

    Attributes:
        protocol: ``camera`` (matches by a query's own camera do not count) or ``vehicleid`` (mean over ten galleries
            of one image per identity).
        inference: for DCAL models, the branches that gave features.
        flip: whether features of mirrored images were added.
        reranked: whether distances were re-ranked with k-reciprocal neighbours.
        num_query: queries that could be read.
        num_gallery: gallery images that could be read.
        measures: ``mAP``, ``mINP`` and ``cmc`` as shares, and the numbers of valid and skipped queries, as
            `visionattn.metrics.retrieval.evaluate_retrieval` returns them.
        before_reranking: the same without re-ranking, if ``reranked``.
        features: queries and gallery with features ``[N, D]``, identities and cameras.
    """

    protocol: str
    inference: Inference | None
    flip: bool
    reranked: bool
    num_query: int
    num_gallery: int
    measures: dict[str, Any]
    before_reranking: dict[str, Any] | None
    features: Gallery = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, as ``eval.py reid --output`` writes them: ``measures`` one by one."""
        parts = [value if key == "measures" else {key: value} for key, value in super().to_dict().items()]
        return {key: value for part in parts for key, value in part.items()}


def evaluate_reid(
    loaded: LoadedModel,
    options: IdentityOptions = AS_TRAINED,
    *,
    inference: Inference | None = None,
    flip: bool = False,
    rerank: bool = False,
    device: str | torch.device = "auto",
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
    announce: Callable[[str], object] | None = None,
) -> RetrievalResult:
    """Evaluate mAP, mINP and CMC of a model's features, by cosine distances.

    Args:
        loaded: the model; it is moved to the device.
        options: queries and gallery; data set and size are by default those of the training.
        inference: for DCAL models, use the features of both branches (``combined``) or of self-attention only (``sa``).
        flip: add the features of the mirrored images.
        rerank: re-rank with k-reciprocal neighbours.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        precision: as Lightning's Trainer names it.
        progress: shows the number of batches and of queries.
        announce: called with a line that names the images and one that says how they are prepared, before the first
            one.

    Raises:
        ValueError: random weights, data that are missing or do not fit, features that are not finite, a protocol
            without ranking.
    """
    model, spec, origin = loaded
    loaded.require_weights("evaluate")
    if origin.weights == "probe":
        raise ValueError(f"{loaded.name} is a head for classes: give its backbone, whose features are compared")
    if inference is not None:
        choose_inference(model, spec.model, inference)
    if rerank:
        require_ranking(spec, options)
    resolved = resolve_device(device)
    data = open_identities(spec, options)
    if announce is not None:
        announce(data.describe())
        announce(describe_preprocessing(data.preprocessing, spec.preprocessing, loaded.name))
    model = model.to(resolved)
    parts: list[Gallery] = []

    def extract(image: Tensor) -> Tensor:
        return reid_features(model, image, flip)

    def update(features: Tensor, batch: Any) -> None:
        parts.append(Gallery(batch.index, features.float().cpu(), batch.target, batch.camera))

    with frozen_weights(model):
        about = evaluate(
            extract, data, update, spec.model, origin, options, device=resolved, precision=precision, progress=progress
        )
    found = merge(parts)
    num_query = int((found.place < data.num_query).sum())
    ranked = (found, data.num_query, data.protocol)
    with progress("ranking", "queries") as report:
        measures = plain = measure(*ranked, device=resolved, progress=adding(report, num_query))
    if rerank:
        with progress("re-ranking", "queries") as report:
            measures = measure(*ranked, reranked=True, progress=adding(report, num_query))
    return RetrievalResult(
        **about,
        protocol=data.protocol,
        inference=getattr(model, "inference", None),
        flip=flip,
        reranked=rerank,
        num_query=num_query,
        num_gallery=len(found.place) - num_query,
        measures=measures,
        before_reranking=plain if rerank else None,
        features=found,
    )


def require_ranking(spec: ModelSpec, options: IdentityOptions) -> None:
    """Raise a ValueError for VehicleID, which has no single ranking that could be re-ranked or drawn."""
    if identity_dataset(spec, options) == "vehicleid":
        raise ValueError("VehicleID has no queries and no gallery of its own: leave out --rerank and --ranked_lists")
