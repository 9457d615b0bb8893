"""Export of heads to files, of which `visionattn.probing.classifier` makes classifiers of images."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionattn.io import WEIGHT_SOURCES, replacing, save_weights
from visionattn.probing.classifier import FORMAT
from visionattn.probing.frozen import FrozenBackbone, Layer, weights_hash
from visionattn.probing.protocols.results import HeadResult

LOCAL = "local-dir:"


def export_probe(
    folder: str | Path,
    name: str,
    result: HeadResult,
    backbone: FrozenBackbone,
    layers: Sequence[Layer],
    class_names: Sequence[str],
    *,
    published: bool = False,
) -> Path:
    """Write a head, of which `load_probe` makes a classifier, and return its `.json` file; existing files are replaced.

    Args:
        folder: Folder of the files.
        name: Name of the files, without a suffix.
        result: The head with its accuracy.
        backbone: The backbone that it was trained on.
        layers: Layers whose tokens the head takes.
        class_names: A name for each class, in order.
        published: Whether `timm.create_model(…, pretrained=True)` gives the backbone's weights. Otherwise they are also
            written, unless the folder has them.

    Raises:
        ValueError: The result has no head, as k-NN's.
        OSError: The files cannot be written.
    """
    if result.head is None:
        raise ValueError(f"{result.name} has no head to export")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digest = weights_hash(backbone.model)
    model, model_kwargs = _describe_anywhere(backbone.name, backbone.model_kwargs)
    # A folder on this machine is not where others find weights.
    stored = None if published and model == backbone.name else f"backbone-{digest}.safetensors"
    if stored and not (folder / stored).exists():
        save_weights(backbone.model.state_dict(), folder / stored)
    save_weights(result.head.state_dict(), folder / f"{name}.safetensors")
    # Of ridge and logistic regression the head is a linear one on the vectors that were chosen.
    options = dict(result.options)
    head_name = options.pop("features") if "features" in options else result.name
    content = {
        "format": FORMAT,
        "head": {
            "name": head_name,
            "dim": result.head.dim,
            "num_classes": result.head.classifier.out_features,
            "options": {} if head_name != result.name else options,
        },
        "weights": hashlib.blake2b((folder / f"{name}.safetensors").read_bytes(), digest_size=16).hexdigest(),
        "backbone": {
            "model": model,
            "model_kwargs": model_kwargs,
            "weights": digest,
            "file": stored,
            "layers": list(layers),
            "autocast": None if backbone.amp_dtype is None else str(backbone.amp_dtype),
        },
        "preprocessing": backbone.preprocessing,
        "class_names": list(class_names),
        "result": result.to_dict(),
    }
    path = folder / f"{name}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _describe_anywhere(name: str, model_kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the architecture and its arguments, without paths on this machine."""
    kwargs = dict(model_kwargs)
    if name.startswith(LOCAL):
        config = json.loads((Path(name.removeprefix(LOCAL)) / "config.json").read_text(encoding="utf-8"))
        name = config["architecture"]
        kwargs = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"} | kwargs
    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    if kept := {key: overlay[key] for key in overlay if key not in WEIGHT_SOURCES}:
        kwargs["pretrained_cfg_overlay"] = kept
    kwargs.pop("checkpoint_path", None)
    return name, kwargs
