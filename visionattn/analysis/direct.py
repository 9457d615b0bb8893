"""Direct effects of heads on the logit of the true class: along the residual stream, past all later blocks.

A head adds its slice of the output projection (without bias, and times LayerScale) to the residual stream. What it adds
reaches the classifier by itself, and through later blocks. The direct effect is the first part alone: through the final
norm, whose scale stays that of the full network, pooling and classifier. This path is linear, so the direct effects of
all heads, and what else is added to the stream, sum to the logits. Of the logits, the mean over all classes is
subtracted from that of the true class, because softmax ignores what all classes share; this is our choice.

They are computed for all heads at once, as gradient times output of a network whose blocks pass gradients along the
residual stream only.

Source: Jin et al., "Cutting Off the Head Ends the Conflict", Findings of ACL 2024, https://arxiv.org/abs/2402.18154.
They patch the path from a head straight to the output.

Shapes: B images, h heads of width d.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import length_hint
from typing import Any

import torch
from timm.layers import RmsNorm
from timm.models import beit
from timm.models.eva import EvaBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block as VitBlock
from timm.models.vision_transformer_relpos import RelPosBlock
from torch import Tensor, nn

from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import Edit, Head, HeadLayer, HeadValues, change_heads
from visionattn.analysis.replay import replaced
from visionattn.evaluation.device import Precision, autocast
from visionattn.models._nat_blocks import Block as NatBlock
from visionattn.probing.classifier import ProbeClassifier
from visionattn.probing.heads.queries import MeanPooling
from visionattn.progress import ShowProgress, no_progress

BLOCKS = (VitBlock, beit.Block, EvaBlock, RelPosBlock, SwinTransformerBlock, NatBlock)
"""Blocks that add attention and an MLP to the residual stream, each after a norm of its input."""


def measure_direct(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    heads: Sequence[Head],
    batches: Iterable[HeadBatch],
    *,
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
) -> HeadValues:
    """Return ``direct``, the mean over images, and ``direct_se``, its standard error, of each head, in logits.

    Both are None for images without classes, and for heads whose stream does not reach the classifier as described:
    in HaloNet, in networks that normalise after attention, in stages before the last one, and if pooling or classifier
    is not linear. Of DCAL's networks, the branch of self-attention answers alone.

    Args:
        network: The network, in evaluation mode, on the device of the batches.
        layers: Its layers, see `head_layers`.
        heads: The heads.
        batches: The images.
        precision: Precision of the network.
        progress: Shows the number of batches.
    """
    reached = _reached(network, layers)
    outputs: dict[int, Tensor] = {}

    def keep(layer: HeadLayer) -> Edit:
        def store(values: Tensor) -> Tensor:
            outputs[layer.number] = values.detach().requires_grad_()
            return outputs[layer.number]

        return store

    found: dict[int, list[Tensor]] = {layer.number: [] for layer in reached}
    with progress("direct effects", "batches") as report, _along_stream(network):
        for number, batch in enumerate(batches if reached else (), 1):
            if batch.target is None:
                break
            with (
                change_heads({layer: keep(layer) for layer in reached}),
                torch.enable_grad(),
                autocast(batch.image.device, precision),
            ):
                logits = network(batch.image).double()
                score = logits.gather(1, batch.target[:, None])[:, 0] - logits.mean(1)
            gradients = torch.autograd.grad(score.sum(), list(outputs.values()), allow_unused=True)
            for (layer, values), gradient in zip(outputs.items(), gradients, strict=True):
                products = torch.zeros_like(values) if gradient is None else values.detach() * gradient
                by_head = products.double().unflatten(0, (len(score), -1)).movedim(-2, 1)
                found[layer].append(by_head.flatten(2).sum(2).cpu())  # [B, h]
            outputs.clear()
            report(number, length_hint(batches) or None)
    return {head: _figures(found.get(head[0]), head[1]) for head in heads}


def _figures(parts: list[Tensor] | None, head: int) -> dict[str, float | None]:
    if not parts:
        return {"direct": None, "direct_se": None}
    values = torch.cat(parts)[:, head]
    error = (values.std() / len(values) ** 0.5).item() if len(values) > 1 else None
    return {"direct": values.mean().item(), "direct_se": error}


def _reached(network: Any, layers: Sequence[HeadLayer]) -> list[HeadLayer]:
    """Return the layers of the last stage, if it is a sequence of `BLOCKS` and all that follows is linear."""
    modules = dict(network.named_modules())
    blocks = [name for name in modules if isinstance(modules[name], BLOCKS) and name.rpartition(".")[2].isdigit()]
    stage = blocks[-1].rpartition(".")[0] if blocks else ""
    if not stage or not all(isinstance(block, BLOCKS) for block in modules[stage]) or not _has_linear_end(network):
        return []
    return [layer for layer in layers if layer.name.rpartition(".")[0] == stage]


def _has_linear_end(network: Any) -> bool:
    model = _model(network)
    norms_known = all(isinstance(norm, nn.LayerNorm | RmsNorm) for norm in _final_norms(model))
    if isinstance(network, ProbeClassifier):
        return norms_known and isinstance(network.head.pool, MeanPooling)
    pool = getattr(model, "global_pool", None) or getattr(getattr(model.head, "global_pool", None), "pool_type", None)
    classifier = model.get_classifier()
    parts = classifier if isinstance(classifier, tuple) else (classifier,)
    return norms_known and pool in ("token", "avg") and all(isinstance(part, nn.Linear) for part in parts)


def _model(network: Any) -> Any:
    return network.backbone.model if isinstance(network, ProbeClassifier) else network


def _final_norms(model: Any) -> list[nn.Module]:
    found = (getattr(model, "norm", None), getattr(model, "fc_norm", None), getattr(model.head, "norm", None))
    return [norm for norm in found if norm is not None and not isinstance(norm, nn.Identity)]


@contextmanager
def _along_stream(network: Any) -> Iterator[None]:
    """Let gradients flow along the residual stream only, and through final norms as if their scale were constant."""
    model = _model(network)
    with ExitStack() as stack:
        for parameter in network.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for block in network.modules():
            if isinstance(block, BLOCKS):
                for branch in (block.norm1, block.norm2, getattr(block, "cpe", None)):
                    if branch is not None:
                        stack.callback(branch.register_forward_hook(lambda _, inputs, out: out.detach()).remove)
        for norm in _final_norms(model):
            stack.enter_context(replaced(norm, "forward", lambda x, norm=norm: _normalize(norm, x)))
        if isinstance(network, ProbeClassifier):
            stack.enter_context(replaced(network.backbone, "forward", network.backbone.tokens))
        elif getattr(model, "inference", "sa") != "sa":
            stack.callback(model.set_inference, model.inference)
            model.set_inference("sa")
        yield


def _normalize(norm: Any, x: Tensor) -> Tensor:
    """Apply a norm; gradients see its scale as a constant."""
    axis = 1 if type(norm).__name__.endswith("2d") else -1
    x = x.movedim(axis, -1).to(torch.promote_types(x.dtype, torch.float32))
    x = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    x = x * (x.detach().square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    x = x if norm.weight is None else x * norm.weight
    bias = getattr(norm, "bias", None)
    return (x if bias is None else x + bias).movedim(-1, axis)
