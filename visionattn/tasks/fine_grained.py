"""Training of classifiers with several branches (DCAL), for fine-grained classes."""

from typing import Any, ClassVar

from torch import Tensor

from visionattn.data import Batch
from visionattn.tasks.classification import ClassificationTask
from visionattn.training.branches import branch_logits


class FineGrainedTask(ClassificationTask):
    """A classifier whose branches each have a loss, which are weighted by learned uncertainties.

    The loss of each branch is logged as ``train_loss_BRANCH`` and its factor as ``weight_BRANCH``. Validation uses the
    model's own answer. A model with one branch is trained as by
    :class:`~visionattn.tasks.classification.ClassificationTask`.

    Args:
        name: the model, e.g. ``dcal_deit_tiny_patch16_224``; ``timm.list_models()`` lists all.
        **options: options of classification.

    Source: Zhu et al., "Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object
    Re-Identification", CVPR 2022, https://arxiv.org/abs/2205.02151, section 3.4.
    """

    kind: ClassVar[str] = "fine_grained"
    help_text: ClassVar[str] = "classifiers with several branches (DCAL)"
    card_text: ClassVar[str] = "a classifier of images, for fine-grained classes"
    shardable: ClassVar[bool] = False

    def __init__(self, name: str = "dcal_deit_tiny_patch16_224", **options: Any) -> None:
        super().__init__(name=name, **options)

    def _build(self) -> None:
        super()._build()
        self._weigh_branches()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted losses of the branches; images are mixed if mixing is on."""
        assert self.model is not None
        image, target = self._mix(batch)
        logits = branch_logits(self.model, self._arrange(image))
        return self._finish_step({name: self._loss(x, target) for name, x in logits.items()}, len(image))
