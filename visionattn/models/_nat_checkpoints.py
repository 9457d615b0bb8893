"""Published NAT, DiNAT and ViT³ checkpoints in every layout that is about, mapped to ours.

Ours is that of `NeighborhoodAttentionTransformer` and `IsotropicNeighborhoodTransformer`. Others are that of the
authors' classifiers (NAT, DiNAT, DiNAT_s, isotropic, ViT³), of NAT's detection and segmentation backbones, which have
a norm per level and no classifier, and of Hugging Face's `Nat...` and `Dinat...` classes.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, cat, nn, tensor, zeros_like

from visionattn.layers.neighborhood_attention import resize_rpb
from visionattn.models._nat_padding import PADDING

Name = str | Callable[[re.Match[str]], str] | None
Piece = tuple[str, tuple[str, ...], Any]  # name in the authors' spirit, names in the file, value

OURS = "our layout"
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
DETECTOR_HEADS = ("neck.", "rpn_head.", "roi_head.", "decode_head.", "auxiliary_head.")
CLASSIFIER = ("head.fc.weight", "head.fc.bias")


def _next_level(match: re.Match[str]) -> str:
    """Rename a downsampling, which ends a level in other layouts and begins the next one in ours."""
    return f"levels.{int(match[1]) + 1}.downsample.{match[2]}"


# Name in the file to name in the model; the first that fits counts, None drops the key, and ours pass as they are.
AUTHORS: Sequence[tuple[str, Name]] = (
    (r"(?:levels|layers)\.(\d+)\.downsample\.(.+)", _next_level),
    (r"(?:levels|layers)\.(\d+\.blocks\.\d+)\.gamma([12])", r"levels.\1.ls\2.gamma"),
    (r"layers\.(\d+\.blocks\..+)", r"levels.\1"),
    (r"layers\.\d+\.attn\.relative_position_index", None),  # a constant
    (r"layers\.(.+)", r"blocks.\1"),
    (r"head\.(weight|bias)", r"head.fc.\1"),
)
HUGGING_FACE: Sequence[tuple[str, Name]] = (
    (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (r"embeddings\.norm\.(.+)", r"patch_embed.norm.\1"),
    (r"encoder\.levels\.(\d+)\.downsample\.(.+)", _next_level),
    *(
        (rf"encoder\.levels\.(\d+)\.layers\.(\d+)\.{theirs}(.*)", rf"levels.\1.blocks.\2.{ours}\3")
        for theirs, ours in {
            r"layernorm_before\.": "norm1.",
            r"layernorm_after\.": "norm2.",
            r"attention\.self\.(?=rpb|qkv)": "attn.",
            r"attention\.output\.dense\.": "attn.proj.",
            r"intermediate\.dense\.": "mlp.fc1.",
            r"output\.dense\.": "mlp.fc2.",
            r"(?=ls[12])": "",
        }.items()
    ),
    (r"layernorm\.(.+)", r"norm.\1"),
    (r"classifier\.(.+)", r"head.fc.\1"),
)


@dataclass(frozen=True)
class Mapped:
    """Content of a checkpoint for one of our models.

    Attributes:
        layout: The layout that it was found to be in, in words.
        state_dict: Tensors by our names.
        sources: By our names those in the file, more than one where several were joined.
        dropped: Names in the file of what our models have no use for.
        unknown: Names in the file of what no layout accounts for.
        is_padded: Whether zeros were attended to around maps smaller than a window.
    """

    layout: str
    state_dict: dict[str, Tensor]
    sources: dict[str, tuple[str, ...]]
    dropped: list[str]
    unknown: list[str]
    is_padded: bool


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Convert a checkpoint in any of the layouts above to a state dict for `model`.

    Relative bias tables of another kernel size are interpolated. A checkpoint without a classifier leaves that of the
    model as it is, with a warning. Another warning says if small maps are padded, as in the training of the weights.

    Args:
        checkpoint: What the file holds.
        model: The model that it is for.

    Raises:
        ValueError: Keys are left over, missing or of another shape; the message names them.
    """
    mapped = map_checkpoint(checkpoint)
    if mapped.is_padded and getattr(model, PADDING, False) is None:
        warnings.warn(
            f"these weights ({mapped.layout}) were trained with zeros around maps that are smaller than a window, and "
            f"the model also pads such maps; {PADDING}=False leaves the zeros out",
            stacklevel=2,
        )
    return fit(mapped, model)[0]


def map_checkpoint(checkpoint: Mapping[str, Any]) -> Mapped:
    """Rename the tensors of a checkpoint to our layout, without a model to compare with."""
    held = _unwrap(checkpoint)
    told = held.pop(PADDING, None)
    layout, rules, pieces = _recognise(held)
    # Whoever has windows in another layout than ours trained with the code of the authors.
    has_windows = any(name.endswith("rpb") for name in held)
    is_padded = layout != OURS and has_windows if told is None else bool(told)
    last = max(
        (int(m[1]) for name in held if (m := re.match(r"(?:encoder\.)?(?:levels|layers)\.(\d+)\.", name))), default=0
    )
    # Of the norms of a backbone, one per level, the last is what a classifier has as its only one.
    rules = (*rules, (rf"(?:norm{last}|hidden_states_norms\.stage{last + 1})\.(.+)", r"norm.\1"))
    rules = (*rules, (r"(?:norm\d+|hidden_states_norms\.\w+)\.(?:weight|bias)", None))
    mapped = Mapped(layout, {}, {}, [], [], is_padded)
    for name, sources, value in pieces:
        ours = _rename(name, rules)
        if ours is None or name.startswith(DETECTOR_HEADS):
            mapped.dropped.extend(sources)
        elif ours in mapped.state_dict or not isinstance(value, Tensor):
            mapped.unknown.extend(sources)
        else:
            mapped.state_dict[ours] = value
            mapped.sources[ours] = sources
    return mapped


def fit(mapped: Mapped, model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Fit a mapped checkpoint to a model, or raise an error that says why it does not fit.

    Returns:
        A state dict for the model, and the names of the tables that were interpolated.

    Raises:
        ValueError: Keys are left over, missing or of another shape; the message names them.
    """
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    own = {name: value for name, value in model.state_dict().items() if name != PADDING}
    fitted = dict(mapped.state_dict)
    resized = []
    for name in fitted.keys() & own.keys():
        table, target = fitted[name], own[name].shape
        if name.endswith("rpb") and table.ndim == 3 and table.shape[0] == target[0] and table.shape != target:
            fitted[name] = resize_rpb(table, ((target[1] + 1) // 2, (target[2] + 1) // 2))
            resized.append(name)
    # timm puts a new classifier in place of one for other classes, and adapts the first convolution to other channels.
    classifier = set(CLASSIFIER) & own.keys()
    renewed = set(CLASSIFIER) if getattr(model, "num_classes", None) != cfg.get("num_classes") else set()
    adapted = {f"{cfg.get('first_conv')}.weight"} if _other_channels(model, cfg) else set()
    if classifier and not renewed and not classifier & fitted.keys():
        fitted.update((name, own[name]) for name in classifier)
        warnings.warn(f"the checkpoint has no classifier: {', '.join(CLASSIFIER)} keep their values", stacklevel=3)
    if not (added := _zero_if_absent(model) & own.keys()) & fitted.keys():
        fitted.update((name, zeros_like(own[name])) for name in added)
    missing = [name for name in own if name not in fitted and name not in renewed]
    unknown = [mapped.sources[name][0] for name in mapped.state_dict if name not in own and name not in renewed]
    misshapen = [
        f"{mapped.sources[name][0]} ({_shape(fitted[name])} in the file, {_shape(value)} in the model)"
        for name, value in own.items()
        if name in fitted and fitted[name].shape != value.shape and name not in renewed | adapted
    ]
    findings = [
        _list("missing in the file", missing),
        _list("left over in the file", [*unknown, *mapped.unknown]),
        _list("of another shape", misshapen),
    ]
    if any(findings):
        architecture = cfg.get("architecture") or type(model).__name__
        raise ValueError(
            f"the checkpoint ({mapped.layout}) does not fit {architecture}: {'; '.join(filter(None, findings))}"
        )
    if mapped.is_padded:
        fitted[PADDING] = tensor(True)
    return fitted, sorted(resized)


def _zero_if_absent(model: nn.Module) -> set[str]:
    """Return the parameters that a file of neighborhood attention lacks, and that are zero then."""
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        for parameter in getattr(module, "zero_if_absent", ())
    }


def _other_channels(model: nn.Module, cfg: Mapping[str, Any]) -> bool:
    return bool(getattr(model, "in_chans", 3) != (cfg.get("input_size") or (3,))[0])


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the wrappers of training scripts, DistributedDataParallel, torch.compile and detectors."""
    wrapper = next((key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
    held = checkpoint[wrapper] if wrapper else checkpoint
    return {re.sub(r"^(?:(?:module|_orig_mod|backbone|nat|dinat)\.)+", "", name): value for name, value in held.items()}


def _recognise(held: Mapping[str, Any]) -> tuple[str, Sequence[tuple[str, Name]], Iterator[Piece]]:
    """Return the layout of a checkpoint, its rules, and its pieces."""
    if any(name.startswith("encoder.levels.") for name in held):
        return "Hugging Face's layout", HUGGING_FACE, _join_hugging_face(held)
    pieces = ((name, (name,), value) for name, value in held.items())
    if any(re.match(r"norm\d+\.", name) for name in held):
        return "the authors' layout of a detection backbone", AUTHORS, pieces
    if any(re.match(r"layers\.|levels\.0\.downsample\.|head\.(weight|bias)$", name) for name in held):
        return "the authors' layout", AUTHORS, pieces
    return OURS, (), pieces


def _join_hugging_face(held: Mapping[str, Any]) -> Iterator[Piece]:
    """Join queries, keys and values, and split the two layer scales of a block."""
    for name, value in held.items():
        if match := re.fullmatch(r"(.+\.attention\.self\.)(query|key|value)\.(weight|bias)", name):
            parts = tuple(f"{match[1]}{part}.{match[3]}" for part in ("query", "key", "value"))
            if not all(isinstance(held.get(part), Tensor) for part in parts):
                yield name, (name,), value
            elif match[2] == "query":
                yield f"{match[1]}qkv.{match[3]}", parts, cat([held[part] for part in parts])
        elif name.endswith(".layer_scale_parameters") and len(value) == 2:
            for number in (1, 2):
                yield name.replace("layer_scale_parameters", f"ls{number}.gamma"), (name,), value[number - 1]
        else:
            yield name, (name,), value


def _rename(name: str, rules: Sequence[tuple[str, Name]]) -> str | None:
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours) if isinstance(ours, str) else ours and ours(match)
    return name


def _list(kind: str, names: Sequence[str], most: int = 4) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {'key' if len(names) == 1 else 'keys'} {kind}: {', '.join(names[:most])}{more}"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
