"""`Backbone`: timm's contract for a model of a stem, a stack, a last layer and a classifier."""

from collections.abc import Sequence
from typing import Any, ClassVar

from timm.layers import ClassifierHead, get_device_dtype
from torch import Tensor, nn


class Backbone(nn.Module):
    """A stem, a stack of levels and a last layer, each from NCHW maps to NCHW maps, and a classifier.

    A family names the three, makes them in its constructor, and calls `finish` at its end. Its `forward_features` runs
    the three in turn. Modules of the stack have a flag `grad_checkpointing`.
    """

    stem_name: ClassVar[str] = "patch_embed"
    stack_name: ClassVar[str] = "levels"
    last_name: ClassVar[str] = "norm"
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of parameters that take no weight decay, beyond the 1-D ones."""

    def finish(
        self,
        feature_info: list[dict[str, Any]],
        num_features: int,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        **dd: Any,
    ) -> None:
        """Make the classifier and the attributes that timm reads.

        Args:
            feature_info: Per module of the stack its channels, reduction and name.
            num_features: Channels of `forward_features`.
            in_chans: Channels of an image.
            num_classes: Classes; 0 for no classifier.
            global_pool: Pooling before the classifier, as in timm ("avg", "max", ...); "" for none.
            drop_rate: Dropout before the classifier.
            **dd: Device and dtype of the classifier.
        """
        self.feature_info = feature_info
        self.num_features = num_features
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.head = ClassifierHead(num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        self.grad_checkpointing = False

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay beyond the 1-D ones."""
        return {name for name, _ in self.named_parameters() if name.endswith(self.undecayed)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return groups of parameters for layer decay: stem, then modules of the stack (coarse) or their blocks."""
        stack, last = rf"^{self.stack_name}\.(\d+)", (rf"^{self.last_name}", (99999,))
        if coarse:
            return {"stem": rf"^{self.stem_name}", "blocks": [(stack, None), last]}
        return {
            "stem": rf"^{self.stem_name}",
            "blocks": [(rf"{stack}\.downsample", (0,)), (rf"{stack}\.blocks\.(\d+)", None), (stack, None), last],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in backward instead of keeping what they computed."""
        self.grad_checkpointing = enable
        for module in getattr(self, self.stack_name):
            module.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the final linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place of the old one; pooling stays unless one is given."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool, **self.device_and_dtype())
        self.head_hidden_size = self.head.num_features

    def device_and_dtype(self) -> dict[str, Any]:
        """Return the device and dtype of maps."""
        return get_device_dtype(self)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the final features, and the outputs of modules of the stack.

        Args:
            x: Images `[B, in_chans, H, W]`.
            indices: Modules whose outputs are returned: the last n for an int, all for None.
            norm: Apply the last layer to the output of the last module.
            stop_early: Stop after the last module that is asked for.
            output_fmt: "NCHW", or "NHWC".
            intermediates_only: Return the list alone.

        Returns:
            The final features and the list of outputs.

        Raises:
            ValueError: `output_fmt` has another value.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC; got {output_fmt!r}")
        stack, last_layer = getattr(self, self.stack_name), getattr(self, self.last_name)
        take, last = take_indices(len(stack), indices)
        outputs = self.run_stack(x, last + 1 if stop_early else len(stack))
        intermediates = []
        for index in sorted(set(take)):
            feature = last_layer(outputs[index]) if norm and index == len(stack) - 1 else outputs[index]
            intermediates.append(feature if output_fmt == "NCHW" else feature.permute(0, 2, 3, 1))
        if intermediates_only:
            return intermediates
        complete = not stop_early or last == len(stack) - 1
        return last_layer(outputs[-1]) if complete else outputs[-1], intermediates

    def run_stack(self, x: Tensor, count: int) -> list[Tensor]:
        """Map images `[B, in_chans, H, W]` to the outputs of the first `count` modules of the stack."""
        outputs = [getattr(self, self.stem_name)(x)]
        for module in getattr(self, self.stack_name)[:count]:
            outputs.append(module(outputs[-1]))
        return outputs[1:]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the modules that the outputs at `indices` do not need, and return the indices as a list."""
        stack = getattr(self, self.stack_name)
        take, last = take_indices(len(stack), indices)
        width: int = self.feature_info[last]["num_chs"]
        shorter = last < len(stack) - 1
        setattr(self, self.stack_name, stack[: last + 1])
        if shorter or prune_norm:
            setattr(self, self.last_name, nn.Identity())
            shorter = shorter or width != self.num_features  # the classifier has no input of its width either way
            self.num_features = width
        if shorter:
            self.head.reset(0, pool_type="", in_features=width)
            self.num_classes, self.head_hidden_size = 0, self.head.num_features
        elif prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to logits `[B, num_classes]`, or to pooled features with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images `[B, in_chans, H, W]` to features `[B, num_features, H', W']`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, in_chans, H, W]` to logits `[B, num_classes]`."""
        return self.forward_head(self.forward_features(x))


def take_indices(count: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Resolve the `indices` of `forward_intermediates`.

    Args:
        count: Number of modules in the stack.
        indices: Modules to take: the last n for an int, all for None; negative numbers count from the end.

    Returns:
        The positions in the order given, and the largest of them.

    Raises:
        ValueError: A position is outside the stack, or there are none.
    """
    if indices is None:
        indices = count
    if isinstance(indices, int):
        found = list(range(count - indices, count))
    else:
        found = [index + count if index < 0 else index for index in indices]
    if not found or min(found) < 0 or max(found) >= count:
        raise ValueError(f"indices must name some of {count} modules, or how many of the last; got {indices!r}")
    return found, max(found)
