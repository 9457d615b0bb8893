"""Training for re-identification: whether two images show the same person or vehicle."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.checks import check_range
from visionattn.data import ReidBatch, ReidData
from visionattn.data.module import ImageData
from visionattn.layers.bnneck import BNNeck
from visionattn.losses.center import CenterLoss
from visionattn.losses.triplet import BatchHardTripletLoss
from visionattn.metrics.gallery import Gallery, gather, measure, merge
from visionattn.tasks.base import TrainingTask
from visionattn.training.branches import branch_features, branch_names, num_features, reid_features
from visionattn.training.objective import widened

RANKS = (1, 5, 10)
SHARED_NECK = {"pwca": "sa"}
"""Pair-wise cross-attention shares all weights with self-attention."""


class ReidTask(TrainingTask):
    """A backbone whose features are trained by cross-entropy behind a BNNeck and by the hardest triplets before it.

    For models with several branches (DCAL), each branch has these losses, weighted by learned uncertainties; they are
    logged as ``train_loss_BRANCH`` and their factors as ``weight_BRANCH``. Validation measures mAP, mINP and ranks on
    query and gallery, with the features before the neck.

    Args:
        name: the model, e.g. ``nat_tiny`` or ``dcal_deit_tiny_patch16_224``; ``timm.list_models()`` lists all.
        smoothing: label smoothing of the cross-entropy.
        triplet_weight: factor of the triplet loss; 0 for none.
        center_weight: factor of the centre loss; 0 for none.
        flip: validate with the sum of the features of each image and its mirror image.
        **options: options of :class:`~visionattn.tasks.base.TrainingTask`, which lists the errors also.
    """

    kind: ClassVar[str] = "reid"
    data_class: ClassVar[type[ImageData]] = ReidData
    monitor: ClassVar[str] = "val_mAP"
    rates: ClassVar[Mapping[str, str]] = {"mAP": "mAP", "mINP": "mINP", "rank1": "rank-1"}
    shown: ClassVar[tuple[str, ...]] = ("val_mAP", "val_rank1")
    eval_command: ClassVar[str | None] = "reid"
    help_text: ClassVar[str] = "re-identification of people and vehicles"
    card_text: ClassVar[str] = "features by which images of the same person or vehicle are found; it has no classes"
    model_alone: ClassVar[bool] = True

    def __init__(
        self,
        name: str = "nat_pico",
        smoothing: float = 0.0,
        triplet_weight: float = 1.0,
        center_weight: float = 0.0,
        flip: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        if not 0 <= smoothing < 1:
            raise ValueError(f"--model.smoothing must lie in [0, 1), got {smoothing}")
        check_range("model.triplet_weight", triplet_weight, 0)
        check_range("model.center_weight", center_weight, 0)
        self._seen: list[Gallery] = []

    def _build(self) -> None:
        self.model = self._create(num_classes=0)
        names, width, identities = branch_names(self.model), num_features(self.model), self.data.num_classes
        own = [name for name in names if SHARED_NECK.get(name) not in names]
        self.necks = nn.ModuleDict({name: BNNeck(width, identities) for name in own})
        self.triplet = BatchHardTripletLoss()
        self.centers = nn.ModuleDict(
            {name: CenterLoss(identities, width) for name in own} if self.options.center_weight else {}
        )
        self._weigh_branches()

    # Steps

    def forward(self, image: Tensor) -> Tensor:
        """Return features [B, D] of images [B, C, H, W]."""
        assert self.model is not None
        return reid_features(self.model, self._arrange(image), self.options.flip)

    def training_step(self, batch: ReidBatch, batch_idx: int) -> Tensor:
        """Return the weighted losses of the branches."""
        assert self.model is not None
        features = branch_features(self.model, self._arrange(batch.image))
        parts = {name: self._losses(name, values, batch.target) for name, values in features.items()}
        if len(parts) == 1:
            (losses,) = parts.values()
        else:
            losses = {name: torch.stack(list(own.values())).sum() for name, own in parts.items()}
        return self._finish_step(losses, len(batch.image))

    def _losses(self, name: str, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the losses of one branch, for features [B, D] of identities [B]."""
        hparams = self.options
        neck = name if name in self.necks else SHARED_NECK[name]
        features, logits = widened(features), widened(self.necks[neck](features))
        losses = {"ce": F.cross_entropy(logits, target, label_smoothing=hparams.smoothing)}
        if hparams.triplet_weight:
            losses["triplet"] = hparams.triplet_weight * self.triplet(features, target)
        if hparams.center_weight:
            losses["center"] = hparams.center_weight * self.centers[neck](features, target)
        return losses

    def _evaluate(self, batch: ReidBatch, split: str, batch_idx: int) -> None:
        """Keep the features of queries and gallery."""
        if len(batch.image):
            tensors = (batch.index, self(batch.image).float(), batch.target, batch.camera)
            self._seen.append(Gallery(*(tensor.cpu() for tensor in tensors)))

    def _end_evaluation(self, split: str) -> None:
        """Measure the features of all processes."""
        parts, self._seen = self._seen, []
        if self.trainer.sanity_checking:
            return
        parts = gather(parts)
        results = self.trainer.strategy.broadcast(self._results(parts, split) if self.trainer.is_global_zero else {})
        for name, value in results.items():
            self.log(f"{split}_{name}", value, prog_bar=name == "mAP")

    def _results(self, parts: list[Gallery], split: str) -> dict[str, float]:
        limit = getattr(self.trainer, f"limit_{split}_batches")
        try:
            found = measure(merge(parts), self.data.num_query, self.data.protocol, device=self.device)
        except ValueError as error:
            if isinstance(limit, float) and limit == 1:
                raise
            rank_zero_warn(f"--trainer.limit_{split}_batches {limit} leaves nothing to measure: {error}")
            return dict.fromkeys(("mAP", "mINP", *(f"rank{k}" for k in RANKS)), math.nan)
        ranks = {f"rank{k}": found["cmc"][k - 1] for k in RANKS}
        return {"mAP": found["mAP"], "mINP": found["mINP"], **ranks}
