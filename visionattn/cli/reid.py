"""How well a model finds the images of a person or vehicle again."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.cli.classify import NAMED_UNREADABLE, build_classifier
from visionattn.cli.device import Precision, autocast, resolve_device
from visionattn.cli.errors import UsageError
from visionattn.cli.images import check_number, check_rollout, save_ranked_lists, save_rollouts
from visionattn.cli.options import renamed
from visionattn.cli.progress import adding, show_progress, track
from visionattn.cli.report import check_folder, check_writable, print_table, write_json
from visionattn.data import ReidData
from visionattn.data.loading import OnError
from visionattn.layers.prepared import frozen_weights
from visionattn.tasks.checkpoint import ClassifierSpec, Weights, weights_origin
from visionattn.tasks.preprocessing import describe_preprocessing
from visionattn.tasks.retrieval import Gallery, measure, merge
from visionattn.training.branches import Inference, choose_inference, reid_features
from visionattn_kernels.provenance import provenance


@dataclass(frozen=True)
class ReidEvaluationData:
    """Which images, and how they are read; what is not given is as the model was trained.

    Args:
        name: data set as for train.py --task reid: identities, market1501, dukemtmc, occluded-duke, msmt17, veri776
            or vehicleid.
        root: its folder.
        gallery_size: of VehicleID, the number of identities: 800, 1600 or 2400.
        height: in pixels.
        width: in pixels.
        batch_size: images per step.
        num_workers: loader processes.
        on_error: an image that cannot be decoded: raise names it and stops, skip leaves it out and counts it.
    """

    name: str | None = None
    root: str | None = None
    gallery_size: int | None = None
    height: int | None = None
    width: int | None = None
    batch_size: int = 128
    num_workers: int | None = None
    on_error: OnError = "raise"


AS_TRAINED = ReidEvaluationData()


def reid(
    checkpoint: Path | None = None,
    model: str | None = None,
    pretrained: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    weights: Weights = "average",
    data: ReidEvaluationData = AS_TRAINED,
    inference: Inference | None = None,
    flip: bool = False,
    rerank: bool = False,
    device: str = "auto",
    precision: Precision = "32-true",
    output: Path | None = None,
    ranked_lists: Path | None = None,
    rollout: Path | None = None,
    num_examples: int = 20,
) -> None:
    """Evaluate mAP, mINP and CMC of a checkpoint or a registered model on a data set for re-identification.

    A checkpoint of train.py --task reid knows its model, its preprocessing and its data set.

    Args:
        checkpoint: file that train.py wrote; together with --model also a plain state dict or .safetensors file.
        model: name of a registered model.
        pretrained: fetch the weights that are published for the model.
        model_kwargs: further arguments for the model, such as {"img_size": [256, 128]}.
        weights: of a checkpoint that holds a moving average, that average or the raw weights.
        data: which images.
        inference: of DCAL's models the features of both branches (combined) or of self-attention alone (sa).
        flip: add the features of the mirrored images.
        rerank: re-rank with k-reciprocal neighbours; the results without it are told, too.
        device: auto, cpu, cuda, cuda:1, …
        precision: as --trainer.precision.
        output: JSON file for the results.
        ranked_lists: folder for images of queries with the first ranks of the gallery, right ones framed green,
            wrong ones red.
        rollout: folder for images of what DCAL's attention is on in queries, and of the patches that it selects.
        num_examples: number of queries that are drawn, evenly spaced.

    Raises:
        UsageError: options that contradict each other.
        ValueError: a model, checkpoint or data set that is not there or does not fit the others.
    """
    check_writable(json=output)
    check_folder(ranked_lists, rollout)
    check_number(num_examples)
    resolved = resolve_device(device)
    network, spec = build_classifier(checkpoint, model, pretrained, model_kwargs or {}, weights)
    if inference is not None:
        choose_inference(network, spec.model, inference)
    if rollout:
        check_rollout(network, spec.model)
    module = _open(data, spec)
    print(describe_preprocessing(module.preprocessing, spec.preprocessing, str(checkpoint or spec.model)))
    if module.protocol == "vehicleid" and (rerank or ranked_lists):
        raise UsageError("VehicleID has no queries and no gallery of its own: leave out --rerank and --ranked_lists")
    network = network.to(resolved)

    start = time.perf_counter()
    with frozen_weights(network):
        found = _extract(network, module, resolved, precision, flip, spec)
    seconds = time.perf_counter() - start
    num_query = int((found.place < module.num_query).sum())
    ranked = (found, module.num_query, module.protocol)
    with show_progress("ranking", "queries") as progress:
        measured = plain = measure(*ranked, device=resolved, progress=adding(progress, num_query))
    if rerank:
        with show_progress("re-ranking", "queries") as progress:
            measured = measure(*ranked, reranked=True, progress=adding(progress, num_query))
    unreadable = module.broken("validation")
    result = {
        "model": spec.model,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "weights": weights_origin(pretrained, model_kwargs, checkpoint, weights),
        "dataset": module.name,
        "root": data.root,
        "protocol": module.protocol,
        "inference": getattr(network, "inference", None),
        "flip": flip,
        "reranked": rerank,
        "num_query": num_query,
        "num_gallery": len(found.place) - num_query,
        **measured,
        "before_reranking": plain if rerank else None,
        "num_unreadable": len(unreadable),
        "unreadable": unreadable[:NAMED_UNREADABLE],
        "images_per_second": len(found.place) / seconds,
        "seconds": seconds,
        "batch_size": data.batch_size,
        "precision": precision,
        "preprocessing": module.preprocessing,
    }
    if output:
        write_json({**result, **provenance(resolved)}, output)
    if ranked_lists:
        loader = module.val_dataloader()
        save_ranked_lists(ranked_lists, found, loader, module.num_query, num_examples, reranked=rerank)
    if rollout:
        save_rollouts(rollout, network, module.val_dataloader(), num_query, module.preprocessing, num_examples)
    _print(result)


@renamed(eval_batch_size="batch_size")
def _open(data: ReidEvaluationData, spec: ClassifierSpec) -> ReidData:
    """Queries and gallery, preprocessed as the model wants it."""
    trained = spec.preprocessing
    _, height, width = trained["input_size"]
    module = ReidData(
        name=data.name or (spec.dataset if spec.task == "reid" else None),
        root=data.root,
        gallery_size=data.gallery_size,
        height=height if data.height is None else data.height,
        width=width if data.width is None else data.width,
        eval_batch_size=data.batch_size,
        num_workers=data.num_workers,
        mean=list(trained["mean"]),
        std=list(trained["std"]),
        on_error=data.on_error,
    )
    module.setup("validate")
    return module


@torch.inference_mode()
def _extract(
    network: nn.Module, module: ReidData, device: torch.device, precision: Precision, flip: bool, spec: ClassifierSpec
) -> Gallery:
    """Features of every image of query and gallery."""
    parts = []
    batch: Any  # of ReidBatch
    for batch in track(module.val_dataloader(), f"evaluating {spec.model}"):
        if len(batch.image):
            with autocast(device, precision):
                features: Tensor = reid_features(network, batch.image.to(device, non_blocking=True), flip)
            parts.append(Gallery(batch.index, features.float().cpu(), batch.target, batch.camera))
    if not parts:
        raise ValueError(f"not one image could be read: {(module.broken('validation') or ['there are none'])[0]}")
    return merge(parts)


def _print(result: dict[str, Any]) -> None:
    plain, reranked = result["before_reranking"], result["reranked"]
    kinds = [("as ranked", plain), ("re-ranked", result)] if reranked else [("as ranked", result)]
    rows = [
        {
            "model": result["model"],
            "data set": result["dataset"],
            **({"distances": name} if reranked else {}),
            "queries": f"{figures['num_valid_queries']:,}",
            "mAP": f"{figures['mAP']:.2%}",
            "mINP": f"{figures['mINP']:.2%}",
            **{f"rank-{k}": f"{figures['cmc'][k - 1]:.2%}" for k in (1, 5, 10)},
        }
        for name, figures in kinds
    ]
    print_table(rows)
    if result["num_skipped_queries"]:
        print(f"queries without a match left out: {result['num_skipped_queries']}")
    if result["num_unreadable"]:
        print(f"unreadable images left out: {result['num_unreadable']}, the first: {result['unreadable'][0]}")
