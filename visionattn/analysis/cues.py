"""Heads that carry one of two cues in conflict: path patching, and cutting the heads of one side.

The images show a digit of class A above a photo of class B, see `visionattn.data.conflicts`. The margin of an image is
logit A - logit B: above 0, the digit wins. The outputs of one head are replaced by those that it has for an image with
another digit, or with another photo. All later layers are computed again, so that paths through them count as well. If
the head carries the cue of the digit, another digit lowers the margin; if it carries that of the photo, another photo
raises it (in the manner of Jin et al., 2024, https://arxiv.org/abs/2402.18154, on language models).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from operator import length_hint
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from visionattn.analysis.heads import Head, HeadLayer, HeadValues, head_name, replace_heads
from visionattn.analysis.patching import ablate, head_means
from visionattn.analysis.replay import Replay
from visionattn.data.conflicts import ConflictBatch
from visionattn.progress import ShowProgress, no_progress

Side = Literal["digit", "photo", "random"]
"""The heads that are cut: those that carry a cue, or any."""
SIZES = (1, 2, 4, 6)
ORDERS = 5


@dataclass(frozen=True)
class Effect:
    """Mean of the margin, or of its change, over the images.

    Attributes:
        mean: In nats, as logits are.
        se: Standard error of the mean.
    """

    mean: float
    se: float

    @classmethod
    def of(cls, values: Tensor) -> "Effect":
        """Return the mean of the values of all images, [N]."""
        return cls(values.mean().item(), values.std().item() / len(values) ** 0.5)


@dataclass(frozen=True)
class CueWins:
    """Share of conflicts in which a network follows each cue.

    Attributes:
        num_images: N.
        digit_wins: Share of the images whose logit of the digit's class is above that of the photo's.
        margin: The difference of these logits.
        top1_digit: Share of the images that are classified as the digit.
        top1_photo: Share that is classified as the photo.
        top1_other: Share that is classified as neither.
    """

    num_images: int
    digit_wins: float
    margin: Effect
    top1_digit: float
    top1_photo: float
    top1_other: float


@dataclass(frozen=True)
class CueStudy:
    """Cues in a network, and in its heads.

    Attributes:
        wins: Which cue wins.
        other_digit: Change of the margin if the image itself gets another digit.
        other_photo: Change of the margin if the image itself gets another photo.
        heads: For each head ``digit`` and ``photo``, the change of the margin if it alone sees another digit or photo,
            and ``digit_se`` and ``photo_se``.
    """

    wins: CueWins
    other_digit: Effect
    other_photo: Effect
    heads: HeadValues

    def to_dict(self) -> dict[str, Any]:
        """Return the results in plain values."""
        return {**asdict(self), "heads": [{"head": head_name(head), **found} for head, found in self.heads.items()]}


@dataclass(frozen=True)
class SideCut:
    """Wins of the cues without some heads.

    Attributes:
        side: Whose heads are cut.
        order: Number of the random order; 0 for a cue.
        heads: The heads, the first ones of their order.
        wins: Which cue wins without them.
    """

    side: Side
    order: int
    heads: list[Head]
    wins: CueWins

    def to_dict(self) -> dict[str, Any]:
        """Return the results in plain values."""
        return {**asdict(self), "heads": [head_name(head) for head in self.heads]}


@torch.inference_mode()
def measure_cues(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    heads: Sequence[Head],
    pairs: Iterable[ConflictBatch],
    progress: ShowProgress = no_progress,
) -> CueStudy:
    """Measure which cue wins, and which heads carry it, by patching the outputs of one head at a time.

    Args:
        network: The network, in evaluation mode.
        layers: Its layers, see `head_layers`.
        heads: Heads to patch.
        pairs: Images of conflicting cues.
        progress: Shows the number of batches.
    """
    replay, others = Replay(network, layers), Replay(network, layers)
    scores = _Scores()
    changes: dict[tuple[Head | None, str], list[Tensor]] = {}
    with progress("patching heads", "batches") as report:
        for number, pair in enumerate(pairs, 1):
            before = scores.add(replay.record(pair.image), pair)
            for cue, images in (("digit", pair.other_digit), ("photo", pair.other_photo)):
                whole = _margin(others.record(images), pair)
                changes.setdefault((None, cue), []).append(whole - before)
                for head in heads:
                    layer = layers[head[0]]
                    patch = replace_heads([head[1]], others.heads[layer.number])
                    patched = _margin(replay.run(pair.image, {layer: patch}), pair)
                    changes.setdefault((head, cue), []).append(patched - before)
            report(number, length_hint(pairs) or None)
    effects = {key: Effect.of(torch.cat(found)) for key, found in changes.items()}
    values: HeadValues = {
        head: {
            name: value
            for cue in ("digit", "photo")
            for name, value in ((cue, effects[head, cue].mean), (f"{cue}_se", effects[head, cue].se))
        }
        for head in heads
    }
    return CueStudy(scores.wins(), effects[None, "digit"], effects[None, "photo"], values)


@torch.inference_mode()
def cut_sides(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    values: HeadValues,
    pairs: Iterable[ConflictBatch],
    sizes: Sequence[int] = SIZES,
    orders: int = ORDERS,
    seed: int = 0,
    progress: ShowProgress = no_progress,
) -> list[SideCut]:
    """Mean-ablate the heads that carry one cue most, and as many random ones, and measure which cue wins then.

    The heads of a cue are ordered by the figures that were measured on the same images or on others.

    Args:
        network: The network, in evaluation mode.
        layers: Its layers, see `head_layers`.
        values: Heads with the figures of `measure_cues`.
        pairs: Images of conflicting cues, which are gone through twice.
        sizes: Numbers of heads to cut; those above the number of heads are left out.
        orders: Number of random orders.
        seed: Seed of the random orders.
        progress: Shows the number of batches.
    """
    replay, ranked = Replay(network, layers), _rank(values, orders, seed)
    chosen = [
        (side, order, heads[:size]) for (side, order), heads in ranked.items() for size in sizes if size <= len(heads)
    ]
    scores = [_Scores() for _ in chosen]
    means = head_means(network, layers, pairs, progress=progress)
    with progress("cutting heads", "batches") as report:
        for number, pair in enumerate(pairs, 1):
            replay.record(pair.image)
            for (_, _, heads), score in zip(chosen, scores, strict=True):
                score.add(replay.run(pair.image, ablate(layers, heads, means)), pair)
            report(number, length_hint(pairs) or None)
    return [SideCut(*choice, score.wins()) for choice, score in zip(chosen, scores, strict=True)]


def _rank(values: HeadValues, orders: int, seed: int) -> dict[tuple[Side, int], list[Head]]:
    """Return the orders in which heads are cut: by how much they carry a cue, and at random."""
    heads = list(values)
    found: dict[tuple[Side, int], list[Head]] = {
        ("digit", 0): sorted(heads, key=lambda head: values[head]["digit"] or 0.0),
        ("photo", 0): sorted(heads, key=lambda head: -(values[head]["photo"] or 0.0)),
    }
    draws = np.random.default_rng(seed)
    for order in range(orders):
        found["random", order] = [heads[place] for place in draws.permutation(len(heads))]
    return found


class _Scores:
    """Margins and predicted classes of all images so far."""

    def __init__(self) -> None:
        self.margins: list[Tensor] = []
        self.top1: list[Tensor] = []

    def add(self, logits: Tensor, pair: ConflictBatch) -> Tensor:
        """Add a batch and return its margins, [B]."""
        predicted = logits.argmax(-1)
        self.margins.append(_margin(logits, pair))
        self.top1.append(torch.stack([predicted == pair.digit, predicted == pair.photo]))
        return self.margins[-1]

    def wins(self) -> CueWins:
        """Return which cue wins."""
        margins = torch.cat(self.margins)
        digit, photo = torch.cat(self.top1, 1).double().mean(1).tolist()
        share = (margins > 0).double().mean().item()
        return CueWins(len(margins), share, Effect.of(margins), digit, photo, 1 - digit - photo)


def _margin(logits: Tensor, pair: ConflictBatch) -> Tensor:
    """Return logit of the digit's class - logit of the photo's, [B]."""
    rows = torch.arange(len(logits), device=logits.device)
    return (logits[rows, pair.digit] - logits[rows, pair.photo]).double()
