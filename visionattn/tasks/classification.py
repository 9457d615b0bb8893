"""Training, validation and prediction of an image classifier."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.data.mixup import Mixup
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from visionattn.checks import check_range
from visionattn.data import Batch
from visionattn.data.sources import some
from visionattn.tasks.base import TrainingTask
from visionattn.training.objective import widened


class ClassificationTask(TrainingTask):
    """An image classifier from timm's registry, its loss, optimizer and schedule.

    With a model's `auxiliary_losses()`, the parts are also logged, as ``train_loss_ce`` and ``train_loss_NAME``.

    Args:
        name: the model, e.g. ``nat_tiny``; ``timm.list_models()`` lists all.
        num_classes: width of the head; by default the number of classes in the data.
        linear_probe: train the head only; the rest keeps its weights and norm statistics.
        loss: ``ce`` (softmax cross-entropy) or ``bce`` (one sigmoid per class).
        smoothing: label smoothing.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none. With both, one of them is drawn for each batch.
        mix_prob: probability that images are mixed at all.
        mix_switch_prob: probability of CutMix if both are on.
        mix_mode: draw the mix once per ``batch``, per ``pair`` or per image (``elem``).
        **options: options of :class:`~visionattn.tasks.base.TrainingTask`, which lists the errors also.
    """

    kind: ClassVar[str] = "classification"
    help_text: ClassVar[str] = "image classifiers"
    card_text: ClassVar[str] = "a classifier of images"
    has_head: ClassVar[bool] = True
    model_alone: ClassVar[bool] = True
    shardable: ClassVar[bool] = True

    def __init__(
        self,
        name: str = "nat_pico",
        num_classes: int | None = None,
        linear_probe: bool = False,
        loss: Literal["ce", "bce"] = "ce",
        smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        mix_switch_prob: float = 0.5,
        mix_mode: Literal["batch", "pair", "elem"] = "batch",
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        if not 0 <= smoothing < 1:
            raise ValueError(f"--model.smoothing must lie in [0, 1), got {smoothing}")
        check_range("model.num_classes", num_classes, 1)
        check_range("model.mixup", mixup, 0)
        check_range("model.cutmix", cutmix, 0)
        check_range("model.mix_prob", mix_prob, 0, 1)
        check_range("model.mix_switch_prob", mix_switch_prob, 0, 1)

    # Building

    def _build(self) -> None:
        hparams = self.options
        names = self.data.class_names
        if hparams.num_classes and len(names) > hparams.num_classes:
            raise ValueError(
                f"the data have {len(names)} classes, the head only {hparams.num_classes} (--model.num_classes): "
                f"pass --model.num_classes {len(names)} or leave it out"
            )
        if self.trainer.state.fn != "fit" and names and hparams.num_classes:
            self.data.check_head(hparams.name, hparams.num_classes)
        has_other_head = self._compare_heads(names)
        if len(names) == 1 and not hparams.num_classes:
            raise ValueError(
                f"the data have one class, {names[0]!r}, from which there is nothing to tell apart: a folder for each "
                "of several classes is expected"
            )
        # Images to predict have no classes; the model keeps its own head.
        self.model = model = self._create(hparams.num_classes or len(names) or None)
        num_classes = int(self.model.num_classes)  # type: ignore[arg-type]
        if has_other_head:
            model.reset_classifier(num_classes)  # type: ignore[operator]
        if hparams.linear_probe:
            self.model.requires_grad_(False)
            self._heads.requires_grad_(True)
            self.train(self.training)
        self.mixup: Mixup | None = None
        if hparams.mixup > 0 or hparams.cutmix > 0:
            draw = {"prob": hparams.mix_prob, "switch_prob": hparams.mix_switch_prob, "mode": hparams.mix_mode}
            targets = {"label_smoothing": hparams.smoothing, "num_classes": num_classes}
            self.mixup = Mixup(hparams.mixup, hparams.cutmix, **draw, **targets)
        if hparams.loss == "bce":
            self.criterion: nn.Module = BinaryCrossEntropy(hparams.smoothing)
        elif self.mixup is not None:
            self.criterion = SoftTargetCrossEntropy()
        else:
            self.criterion = LabelSmoothingCrossEntropy(hparams.smoothing)
        for split in ("val", "test"):
            setattr(self, f"{split}_loss", MeanMetric())
            for k in (1, 5):
                metric = MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
                setattr(self, f"{split}_top{k}", metric)

    def _compare_heads(self, names: list[str]) -> bool:
        """Return whether training starts from a head of the same width for other classes; warn if some are the same."""
        known = self.data.preferred_classes
        if not known or len(known) != (self.options.num_classes or len(names)) or set(known) == set(names):
            return False
        if set(known).isdisjoint(names):
            return True
        rank_zero_warn(
            f"{self.options.name} starts with a head for {some(known)}; the data have {some(names)}: its outputs "
            "learn these in place of those, in their order"
            + ("; where some are the same, pass --data.class_map" if self.data.name in ("folder", "tar") else "")
        )
        return False

    def train(self, mode: bool = True) -> "ClassificationTask":
        """Set the mode; a probed backbone stays in evaluation mode, because its norm statistics are frozen as well."""
        super().train(mode)
        if self.options.linear_probe and self.model is not None:
            self.model.eval()
            self._heads.train(mode)
        return self

    # Steps

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, num_classes] of images [B, C, H, W]."""
        assert self.model is not None
        # An empty batch needs no model, but other processes may wait for this one's part of it.
        some = image if len(image) else image.new_zeros(1, *image.shape[1:])
        logits: Tensor = self.model(self._arrange(some))
        return logits[: len(image)]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mix the images, if mixing is on, and return the loss."""
        image, target = self._mix(batch)
        return self._finish_step({self.options.loss: self.criterion(widened(self(image)), target)}, len(image))

    def _mix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images and targets; if they are mixed, targets are shares of classes [B, num_classes]."""
        image, target = batch.image, batch.target
        if self.mixup is None:
            return image, target
        even = len(image) - len(image) % 2 or len(image)
        if even == 1:
            return image, F.one_hot(target, self.spec.num_classes).float()
        mixed: tuple[Tensor, Tensor] = self.mixup(image[:even], target[:even])
        return mixed

    def _end_evaluation(self, split: str) -> None:
        """Check that an image was read."""
        name = "validation" if split == "val" else split
        seen = torch.tensor(float(getattr(self, f"{split}_top1").update_called), device=self.device)
        if not self.trainer.strategy.reduce(seen, reduce_op="sum"):
            first = (self.data.broken(name) or ["others have met them"])[0]
            raise ValueError(f"not one {name} image could be read, of those asked for; first {first}")

    def _evaluate(self, batch: Batch, split: str, batch_idx: int) -> None:
        count = len(batch.image)
        metrics = {key: getattr(self, f"{split}_{key}") for key in ("loss", "top1", "top5")}
        logits = self(batch.image).float()
        if count:
            if self.trainer.state.fn != "fit":  # training checks the loss
                require_finite(logits, batch.name, self.spec.model)
            metrics["loss"].update(F.cross_entropy(logits, batch.target), count)
            for key in ("top1", "top5"):
                metrics[key].update(logits, batch.target)
        for key, metric in metrics.items():
            self.log(f"{split}_{key}", metric, on_epoch=True, prog_bar=key == "top1", batch_size=max(count, 1))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[tuple[str, str, float]]:
        """Return file name, class and probability of each image."""
        logits = self(batch.image).float()
        require_finite(logits, batch.name, self.spec.model)
        probability, index = logits.softmax(-1).max(-1)
        names = self.spec.class_names or [str(number) for number in range(self.spec.num_classes)]
        return [
            (name, names[best], share)
            for name, best, share in zip(batch.name, index.tolist(), probability.tolist(), strict=True)
        ]


def require_finite(logits: Tensor, names: Sequence[str], model: str) -> None:
    """Check logits [B, num_classes] of images; one of them would be the largest even if none is finite.

    Raises:
        ValueError: NaN or infinity; the message names the model and the first image.
    """
    if not logits.isfinite().all():
        raise ValueError(f"{model} gives no finite numbers for {names[0]} or one that follows it")
