"""Effects of single heads, and of sets of heads, on a network's outputs: what changes if they are ablated."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from visionattn.analysis.head_images import HeadBatch
from visionattn.analysis.heads import Head, HeadLayer, HeadValues
from visionattn.analysis.outcomes import Outcomes
from visionattn.analysis.patching import Ablation, Unfinished, measure_ablations
from visionattn.evaluation.device import Precision
from visionattn.progress import ShowProgress, no_progress


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of single heads.

    Attributes:
        heads: The heads.
        outcomes: Outcomes of the unchanged network, and of the network without each head.
    """

    heads: list[Head]
    outcomes: Outcomes

    def values(self) -> HeadValues:
        """Return ``d_loss``, ``d_loss_se``, ``d_top1`` and ``d_top1_se`` of each head.

        Without classes these are ``d_features`` and ``d_features_se``. Positive ``d_loss`` means that the head helps.
        Standard errors are paired over images.
        """
        return {head: self.outcomes.effects(version) for version, head in enumerate(self.heads, 1)}

    @property
    def baseline(self) -> dict[str, float]:
        """``loss`` and ``top1`` of the unchanged network; nothing without classes."""
        return self.outcomes.means(0)

    @property
    def split_half(self) -> float | None:
        """Spearman's correlation, over heads, of the effects on images of even and of odd number.

        The effect is ``d_loss``, or ``d_features``. None if it is undefined: fewer than two heads or images, or equal
        effects of all heads.
        """
        from scipy.stats import spearmanr  # slow to import

        changes = self.outcomes.changes[0, 1:]
        halves = [changes[:, start::2].mean(1) for start in (0, 1)]
        if changes.shape[1] < 2 or any(len(half.unique()) < 2 for half in halves):
            return None
        return float(spearmanr(*halves).statistic)


def measure_effects(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    heads: Sequence[Head],
    batches: Iterable[HeadBatch],
    *,
    ablation: Ablation = "mean",
    means: Sequence[Tensor] | None = None,
    unfinished: Unfinished | None = None,
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
) -> Effects:
    """Ablate each head by itself.

    Args:
        network: The network, in evaluation mode, on the device of the batches.
        layers: Its layers, see `head_layers`.
        heads: The heads.
        batches: The images, the same at each call.
        ablation: What stands in the place of a head's outputs.
        means: Means of heads, see `head_means`, for the ablation ``mean``.
        unfinished: File from which an interrupted measurement resumes.
        precision: Precision of the network.
        progress: Shows the number of passes.

    Raises:
        UserError: There are no images, or an output is not finite.
        OSError: The file cannot be written.
    """
    choices = [(), *((head,) for head in heads)]
    outcomes = measure_ablations(
        *(network, layers, choices, batches),
        ablation=ablation,
        means=means,
        unfinished=unfinished,
        precision=precision,
        progress=progress,
    )
    return Effects(list(heads), outcomes)


def measure_set(
    network: nn.Module,
    layers: Sequence[HeadLayer],
    heads: Collection[Head],
    batches: Iterable[HeadBatch],
    *,
    ablation: Ablation = "mean",
    means: Sequence[Tensor] | None = None,
    precision: Precision = "32-true",
    progress: ShowProgress = no_progress,
) -> dict[str, float | None]:
    """Ablate several heads at once; return ``loss`` and ``top1`` without them, and effects as in `Effects.values`.

    Arguments and errors are those of `measure_effects`.
    """
    outcomes = measure_ablations(
        *(network, layers, [(), heads], batches), ablation=ablation, means=means, precision=precision, progress=progress
    )
    return {**outcomes.means(1), **outcomes.effects(1)}
