"""Weights that a training starts from: all that fit are loaded, heads of another width stay as they are."""

from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from visionattn.training.preprocessing import adapt_preprocessing, differing_keys, model_preprocessing


def classifiers(model: Any) -> tuple[nn.Module, ...]:
    """Return the classifiers of a model: one, or several for models with several branches."""
    found = model.get_classifier()
    return found if isinstance(found, tuple) else (found,)


def load_all_but_heads(model: nn.Module, initial: Mapping[str, Tensor]) -> None:
    """Load weights from ``initial``, except those of classifiers of another width."""
    heads = classifiers(model)
    head = tuple(name for name, module in model.named_modules() if any(module is one for one in heads))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    kept = {key: value for key, value in initial.items() if not key.startswith(head) or value.shape == shapes.get(key)}
    model.load_state_dict(kept, strict=False)


def require_heads(model: nn.Module, initial: Mapping[str, Tensor], path: str) -> None:
    """Check that a file has the weights of the classifiers, which would otherwise answer at random."""
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    for name in (own[id(parameter)] for head in classifiers(model) for parameter in head.parameters()):
        if name not in initial or initial[name].shape != model.get_parameter(name).shape:
            raise ValueError(f"{path} has no weights for the head, {name}: train.py fit trains one")


def warn_of_normalization(model: nn.Module, name: str, used: Mapping[str, Any]) -> None:
    """Warn if the preprocessing of the data normalises in another way than pretrained weights expect."""
    wanted = adapt_preprocessing(model_preprocessing(model), {"in_chans": used["input_size"][0]})
    for key in differing_keys(used, wanted):
        if key in ("mean", "std"):
            ours, theirs = list(used[key]), [round(value, 6) for value in wanted[key]]
            rank_zero_warn(
                f"{name} was pretrained with {key} {theirs}, the data have {ours}: "
                f"--data.{key} '{theirs}' makes them agree"
            )
