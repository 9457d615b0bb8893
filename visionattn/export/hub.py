"""Models as folders that timm and the Hugging Face hub know: weights, `config.json`, and a card, `README.md`."""

import json
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf, split_model_name_tag
from timm.models._input import update_model_input_size  # not exported; test_hub.py's sequence fails if it moves

from visionattn.errors import UsageError
from visionattn.export.card import evaluated, write_card
from visionattn.export.network import Network
from visionattn.export.run import RunRecord
from visionattn.io import replacing_all
from visionattn.output import check_folder
from visionattn.training import create_model

CONFIG = "config.json"
KEY = "visionattn"
"""Key of `config.json` that holds `Network.describe()`; timm ignores it."""


def save_folder(
    network: Network,
    folder: Path,
    checkpoint: Path | None,
    dtype: str,
    license: str | None = None,
    overwrite: bool = False,
    data_name: str | None = None,
    evaluation: Path | None = None,
) -> None:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads, and transformers also.

    Args:
        network: The model, which is changed to `dtype`.
        folder: The folder to write, which is made if it is missing. Files of an earlier export are replaced.
        checkpoint: The file of the weights; its run is described in the card.
        dtype: Type of the weights in the file.
        license: License of the weights, for the card.
        overwrite: Whether the folder may hold other content. Files of other names are kept.
        data_name: Name of the data set in the card.
        evaluation: File of `eval.py classify --output`, for the card.

    Raises:
        ValueError: The folder cannot be written, or holds something else; the evaluation is of another model; or the
            model cannot be built again, as one whose heads are cut.
    """
    if network.spec.model_kwargs.get("cut_heads"):
        raise UsageError(f"{network.spec.model} has cut heads, which timm cannot build: export onnx or program instead")
    found = None if evaluation is None else _read_evaluation(evaluation, network.spec.model)
    check_folder(folder)
    if not overwrite and not _is_ours(folder):
        raise ValueError(f"{folder} is not empty and holds no earlier export: name another folder, or pass --overwrite")
    model: Any = network.module.to(getattr(torch, dtype))
    if network.spec.preprocessing.get("sequence"):
        # timm would take a length for the edge of a square.
        update_model_input_size(model, network.input_size[1:])
    config: dict[str, Any] = {KEY: {**network.describe(), "dtype": dtype}}
    if network.class_names:
        config["label_names"] = network.class_names
    # The registry's facts about published weights hold for those weights alone.
    config["pretrained_cfg"] = {} if network.class_names else {"label_names": None}
    if checkpoint is not None:
        config["pretrained_cfg"] |= {"license": license, "tag": None, "origin_url": None, "notes": None}
    elif license is not None:
        config["pretrained_cfg"] |= {"license": license}
    if network.spec.multi_label:
        config["problem_type"] = "multi_label_classification"  # read by transformers alone: loss, and sigmoid
    with replacing_all(folder) as aside:
        preprocessing = {**network.spec.preprocessing, "input_size": network.input_size}
        save_for_hf(model, str(aside), config, data_config=preprocessing, safe_serialization=True)
        _state_classes_once(aside)
        run = RunRecord.of(checkpoint) if checkpoint is not None else RunRecord()
        card = write_card(network, run, dtype, license, data_name, found)
        (aside / "README.md").write_text(card, encoding="utf-8")


def _state_classes_once(folder: Path) -> None:
    """Remove `num_classes` from the model's arguments, unless the architecture ignores the one beside them.

    timm writes both. transformers passes both to `timm.create_model`, which is a TypeError.
    """
    path = folder / CONFIG
    text = path.read_text(encoding="utf-8")
    config = json.loads(text)
    config.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    built: Any = create_model(f"local-dir:{folder}")
    if built.num_classes != config["num_classes"]:
        path.write_text(text, encoding="utf-8")


def _read_evaluation(path: Path, model: str) -> dict[str, Any]:
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        missing = {"model", "split", "num_images", *evaluated(found)} - found.keys()
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: name what eval.py classify --output wrote") from error
    if missing or split_model_name_tag(found["model"])[0] != model:
        what = f"lacks {', '.join(sorted(missing))}" if missing else f"is of {found['model']}, not {model}"
        raise ValueError(f"{path} {what}: name what eval.py classify --output wrote for this model")
    return found


def _is_ours(folder: Path) -> bool:
    """Return whether a folder is empty or was written by `save_folder`."""
    if not any(folder.iterdir()):
        return True
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and KEY in content
