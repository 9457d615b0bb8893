"""Forward passes that start at a later layer: of the earlier ones, the outputs of a recorded pass are taken."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn

from visionattn.analysis.heads import Edit, HeadLayer, change_heads


class Replay:
    """Passes of a network on one batch of images, with changes of heads.

    The first pass, `record`, keeps what each block with attention returns, and the outputs of the heads. Later passes
    on the same images compute only what comes after the last block before the change: on average half of the network.

    Memory: an output of each block, and the outputs of its heads, for one batch.

    Args:
        network: The network, in evaluation mode, or a classifier around it.
        layers: Its layers, see `head_layers`.
    """

    def __init__(self, network: nn.Module, layers: Sequence[HeadLayer]) -> None:
        self.network, self.layers = network, layers
        names = dict(network.named_modules())
        self._blocks = [_Block(names[layer.name]) for layer in layers]
        self.heads: list[Tensor] = []
        """Outputs of the heads of each layer in the recorded pass, `[..., h, d]`."""

    def record(self, images: Tensor) -> Any:
        """Return the network's output for images `[B, C, H, W]`, and keep what the blocks return."""
        self.heads = [None] * len(self.layers)  # type: ignore[list-item]

        def keep(layer: HeadLayer) -> Edit:
            def store(values: Tensor) -> Tensor:
                self.heads[layer.number] = values
                return values

            return store

        with change_heads({layer: keep(layer) for layer in self.layers}), ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(block.recording())
            return self.network(images)

    def run(self, images: Tensor, edits: dict[HeadLayer, Edit]) -> Any:
        """Return the network's output for the recorded images, with changes of heads.

        Args:
            images: The images of the recorded pass.
            edits: Changes by layer; none repeats the recorded pass.
        """
        first = min(edits, key=lambda layer: layer.number, default=self.layers[-1])
        with change_heads(edits), ExitStack() as stack:
            for block in self._blocks[: first.number]:
                stack.enter_context(block.returning())
            stack.enter_context(replaced(first.module, "forward", lambda *_, **__: self._finish(first)))
            return self.network(images)

    def _finish(self, layer: HeadLayer) -> Tensor:
        """Return what follows the recorded heads in a layer; the caller's edits change them on the way."""
        outputs = self.heads[layer.number].flatten(-2)
        return outputs.movedim(-1, 1) if layer.proj is None else layer.proj(outputs)


class _Block:
    """A block of a network and what it returned; of DCAL's, whose network does not call `forward`, the same method."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.returned = module, cast(Any, None)
        self.method = "forward_parts" if hasattr(module, "forward_parts") else "forward"

    def recording(self) -> AbstractContextManager[None]:
        compute = getattr(self.module, self.method)

        def record(*args: Any, **kwargs: Any) -> Any:
            self.returned = compute(*args, **kwargs)
            return self.returned

        return replaced(self.module, self.method, record)

    def returning(self) -> AbstractContextManager[None]:
        return replaced(self.module, self.method, lambda *_, **__: self.returned)


@contextmanager
def replaced(module: nn.Module, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of one module within a `with` block."""
    held = vars(module).get(method)
    setattr(module, method, function)
    try:
        yield
    finally:
        if held is None:
            delattr(module, method)
        else:
            setattr(module, method, held)
