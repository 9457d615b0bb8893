"""A frozen timm model that returns tokens of its last layer, of blocks, or of both."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from visionattn.checks import reason
from visionattn.layers.full_attention import unfuse

Layer = int | Literal["last"]
"""A layer: the number of a block (in hierarchical models, of a stage), or "last", the features for the classifier."""


@dataclass(frozen=True)
class TokenLayout:
    """Layout of a layer's tokens: a class token first, then registers, then patches, row by row.

    Attributes:
        dim: Width of a token.
        grid: Rows and columns of patches.
        num_prefix_tokens: Tokens before the patches.
        num_reg_tokens: How many of these are registers.
    """

    dim: int
    grid: tuple[int, int]
    num_prefix_tokens: int = 0
    num_reg_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens of an image, of all kinds."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def has_cls(self) -> bool:
        """True if there is a class token."""
        return self.num_prefix_tokens > self.num_reg_tokens


class FrozenBackbone(nn.Module):
    """A frozen timm model, whose features are tokens or a map, that returns the tokens of layers.

    The model's final norm is applied to every layer, wherever timm keeps it, unless `norm_blocks` is false. Layers of
    another width than the norm's, such as early stages of hierarchical models, are not normalised. The model stays in
    evaluation mode.

    Attributes:
        depth: Number of blocks; in hierarchical models, of stages.
        layers: The layers, with blocks counted from the first.
        layouts: Layout of each layer's tokens.
        preprocessing: Preprocessing of images: `input_size` (C, H, W), `mean`, `std`, `interpolation`, `crop_pct` and
            `crop_mode`.
    """

    model: Any  # what timm's models have in common has no type

    def __init__(
        self,
        model: nn.Module,
        name: str,
        layers: Sequence[Layer] | None = ("last",),
        model_kwargs: Mapping[str, Any] | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        amp_dtype: torch.dtype | None = None,
        norm_blocks: bool = True,
    ) -> None:
        """Freeze the model, and find its layouts with an empty image.

        Args:
            model: The model, which is changed in place.
            name: Name in timm's registry.
            layers: Layers to return; negative numbers count from the last block. None for all blocks.
            model_kwargs: Arguments that the model was made with, plain values; part of its identity.
            preprocessing: By default that of the model's `pretrained_cfg`.
            amp_dtype: Type of autocast; None for no autocast.
            norm_blocks: Whether the final norm is applied to blocks.

        Raises:
            ValueError: The model returns no tokens, takes no images of that size, or has no such layer.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.name, self.model_kwargs, self.amp_dtype = name, dict(model_kwargs or {}), amp_dtype
        self.norm_blocks = norm_blocks
        if amp_dtype is not None:
            unfuse(model, self.device)
        self.preprocessing: dict[str, Any] = dict(preprocessing or resolve_model_data_config(model))
        if hasattr(model, "set_inference"):
            self.model.set_inference("sa")  # DCAL's global-local features have no place among class token and patches
        final, taps = self._probe()
        self.depth = len(taps)
        self.layers = _resolve_layers(range(self.depth) if layers is None else layers, self.depth, name)
        registers = num_reg_tokens(model)
        self.layouts = {
            layer: self._last_layout(final, taps, registers)
            if layer == "last"
            else _tap_layout(*taps[layer], registers)
            for layer in self.layers
        }
        # Of a stack that is cut short, timm wants to know at least one block.
        self._taps = sorted(layer for layer in self.layers if layer != "last") or [len(taps) - 1]

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Stay in evaluation mode, whatever `mode`."""
        return super().train(False)

    @property
    def identity(self) -> dict[str, Any]:
        """All that features depend on except the images, as plain values; weights by their hash."""
        return {
            "model": self.name,
            "model_kwargs": self.model_kwargs,
            "weights": weights_hash(self.model),
            "preprocessing": self.preprocessing,
            "layers": list(self.layers),
            **({} if self.norm_blocks else {"norm_blocks": False}),  # without it, keys of caches stay what they were
            "autocast": str(self.amp_dtype),
            "timm": timm.__version__,
            "visionattn": version("visionattn"),  # whose models may compute otherwise in another release, as timm's may
        }

    def forward(self, images: Tensor) -> dict[Layer, Tensor]:
        """Return the tokens of each layer `[B, num_tokens, dim]`, float32, on the model's device, without a graph.

        They are not inference tensors, on which heads could not be trained. Images `[B, C, H, W]` have the size that
        `preprocessing` names, and may lie on any device.
        """
        with torch.no_grad():
            return self.tokens(images)

    def tokens(self, images: Tensor) -> dict[Layer, Tensor]:
        """Return what `forward` does, with a graph if gradients are enabled."""
        images = images.to(self.device, self._weight.dtype)
        with self._autocast():
            final, taps = self._features(images, self._taps, "last" in self.layers)
            tapped = dict(zip(self._taps, taps, strict=True))
            tokens = {
                layer: self._last_tokens(final) if layer == "last" else self._tap_tokens(*tapped[layer])
                for layer in self.layers
            }
        return {layer: value.float() for layer, value in tokens.items()}

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        return next(self.model.parameters())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    def _features(
        self, images: Tensor, taps: list[int] | None, with_final: bool
    ) -> tuple[Any, list[tuple[Tensor | None, Tensor]]]:
        """Return the final features, and for blocks (None: all) their prefix tokens and maps [B, D, H, W]."""
        forward = self.model.forward_intermediates
        options: dict[str, Any] = {"stop_early": not with_final, "intermediates_only": not with_final}
        # timm's models without prefix tokens fail when asked for them.
        with_prefix = bool(getattr(self.model, "num_prefix_tokens", 0)) and (
            "return_prefix_tokens" in inspect.signature(forward).parameters
        )
        if with_prefix:
            options["return_prefix_tokens"] = True
        result = forward(images, indices=taps, output_fmt="NCHW", **options)
        final, maps = result if with_final else (None, result)
        return final, [(tap[1], tap[0]) if with_prefix else (None, tap) for tap in maps]

    def _probe(self) -> tuple[Any, list[tuple[Tensor | None, Tensor]]]:
        if not hasattr(self.model, "forward_intermediates"):
            raise ValueError(f"model {self.name!r} has no forward_intermediates; take one of timm's")
        size = tuple(self.preprocessing["input_size"])
        images = torch.zeros(1, *size, device=self._weight.device, dtype=self._weight.dtype)
        try:
            with torch.no_grad(), self._autocast():
                return self._features(images, None, True)
        except (AssertionError, ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"model {self.name!r} takes no images {' × '.join(map(str, size))}: {reason(error)}; "
                "choose --data.img_size, or input_size of preprocessing"
            ) from error

    def _tap_tokens(self, prefix: Tensor | None, features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)
        tokens = tokens if prefix is None else torch.cat([prefix, tokens], dim=1)
        if not self.norm_blocks:
            return tokens
        return _normalize(tokens, _norm(self.model, "norm") or _norm_of_head(self.model))

    def _last_tokens(self, final: Tensor) -> Tensor:
        return _normalize(in_rows(self.model, final).flatten(1, -2), _norm_of_head(self.model))

    def _last_layout(self, final: Any, taps: list[tuple[Tensor | None, Tensor]], num_reg_tokens: int) -> TokenLayout:
        if not isinstance(final, Tensor):
            raise ValueError(  # noqa: TRY004  it is the model that does not fit
                f"model {self.name!r} ends in several sequences of tokens; tap a block by its number"
            )
        final = in_rows(self.model, final)
        rows, columns = final.shape[1:3] if final.dim() == 4 else taps[-1][1].shape[2:]
        num_tokens = final.shape[1:-1].numel()
        # Some models have a class token and do not say so.
        prefix = getattr(self.model, "num_prefix_tokens", None)
        prefix = num_tokens - rows * columns if prefix is None else prefix
        if prefix < 0 or num_tokens != prefix + rows * columns:
            raise ValueError(
                f"model {self.name!r} ends in {num_tokens} tokens, which are not {max(prefix, 0)} prefix tokens and a "
                f"grid of {rows} × {columns}; tap a block by its number"
            )
        return TokenLayout(final.shape[-1], (rows, columns), prefix, min(num_reg_tokens, prefix))


def in_rows(model: Any, features: Tensor) -> Tensor:
    """Return the final features of a timm model as tokens `[B, N, D]`, patches row by row, or a map `[B, H, W, D]`."""
    if hasattr(model, "reroll"):  # Hiera's come in the order of its mask units.
        return model.reroll(features, len(model.blocks) - 1)
    if features.dim() == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW":
        return features.permute(0, 2, 3, 1)
    return features


def weights_hash(model: nn.Module) -> str:
    """Return a hash of a model's state: names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _resolve_layers(layers: Sequence[Layer], depth: int, name: str) -> tuple[Layer, ...]:
    for layer in layers:
        if layer != "last" and not (isinstance(layer, int) and -depth <= layer < depth):
            raise ValueError(f"model {name!r} has no layer {layer!r}; there are 0 to {depth - 1}, and 'last'")
    resolved = tuple(layer if layer == "last" else layer % depth for layer in layers)
    if not resolved or len(set(resolved)) < len(resolved):
        raise ValueError(f"layers must be one or more, each of them once; got {list(layers)} of {depth}")
    return resolved


def _tap_layout(prefix: Tensor | None, features: Tensor, num_reg_tokens: int) -> TokenLayout:
    _, dim, rows, columns = features.shape
    num_prefix_tokens = 0 if prefix is None else prefix.shape[1]
    return TokenLayout(dim, (rows, columns), num_prefix_tokens, min(num_reg_tokens, num_prefix_tokens))


def num_reg_tokens(model: nn.Module) -> int:
    """Return the number of registers among a model's prefix tokens."""
    declared = getattr(model, "num_reg_tokens", None)
    registers = getattr(model, "reg_token", None)
    return declared or (0 if registers is None else registers.shape[1])


def _norm_of_head(model: nn.Module) -> nn.Module | None:
    """Return the norm of models that pool before they normalise, if there is one."""
    return _norm(model, "fc_norm") or _norm(getattr(model, "head", None), "norm")


def _norm(owner: nn.Module | None, name: str) -> nn.Module | None:
    norm = getattr(owner, name, None)
    return norm if isinstance(getattr(norm, "weight", None), Tensor) else None


def _normalize(tokens: Tensor, norm: Any) -> Tensor:
    """Normalise tokens [B, N, D] with a norm of their width; other norms belong to later stages or hidden layers."""
    if norm is None or tokens.shape[-1] != norm.weight.numel():
        return tokens
    if type(norm).__name__.endswith("2d"):  # over the channels of maps [B, D, H, W]
        return norm(tokens.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
    return norm(tokens)
