"""Training, validation and prediction of an image classifier."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from visionattn.checks import check_range
from visionattn.data import Batch
from visionattn.data.sources import some
from visionattn.losses.classification import LossName, class_weights, create_criterion, positive_weights
from visionattn.metrics.classification import create_metrics
from visionattn.tasks.base import TrainingTask
from visionattn.training.objective import widened
from visionattn.training.predictions import THRESHOLD, Prediction, make_predictions


class ClassificationTask(TrainingTask):
    """An image classifier from timm's registry, its loss, optimizer and schedule.

    If images may have several labels, each class has a probability of its own, and the best checkpoint is that of the
    highest mean average precision, not of the highest top-1 accuracy. With a model's `auxiliary_losses()`, the parts
    are also logged, as ``train_loss_ce`` and ``train_loss_NAME``.

    Args:
        name: the model, e.g. ``nat_tiny``; ``timm.list_models()`` lists all.
        num_classes: width of the head; by default the number of classes in the data.
        linear_probe: train the head only; the rest keeps its weights and norm statistics.
        loss: ``ce`` (softmax cross-entropy; the default for one label per image), ``bce`` (one sigmoid per class; the
            default for several labels) or ``focal`` (either of them, with less weight on easy images).
        focal_gamma: strength of the focal loss; 0 is cross-entropy.
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
    rates: ClassVar[Mapping[str, str]] = {
        "top1": "top-1",
        "top5": "top-5",
        "balanced_top1": "balanced top-1",
        "map": "mAP",
        "f1": "macro F1",
        "f1_micro": "micro F1",
    }
    has_head: ClassVar[bool] = True
    model_alone: ClassVar[bool] = True
    shardable: ClassVar[bool] = True

    def __init__(
        self,
        name: str = "nat_pico",
        num_classes: int | None = None,
        linear_probe: bool = False,
        loss: LossName | None = None,
        focal_gamma: float = 2.0,
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
        check_range("model.focal_gamma", focal_gamma, 0)
        softened = {"smoothing": smoothing, "mixup": mixup, "cutmix": cutmix}
        if loss == "focal" and (given := next((name for name, value in softened.items() if value), None)):
            raise ValueError(
                f"--model.loss focal wants labels that are not softened: leave out --model.{given}, or choose "
                "another loss"
            )

    @property
    def monitor(self) -> str:
        """Metric that selects ``best.ckpt``; known once the data are set up."""
        return "val_map" if self.multi_label else "val_top1"

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
            self.data.check_head(hparams.name, hparams.num_classes, self.multi_label)
        has_other_head = self._compare_heads(names)
        if len(names) == 1 and not hparams.num_classes and not self.multi_label:
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
            self.mixup = Mixup(hparams.mixup, hparams.cutmix, **draw, **targets, multi_label=self.multi_label)
        self.loss_name: LossName = hparams.loss or ("bce" if self.multi_label else "ce")
        if self.multi_label and self.loss_name == "ce":
            raise ValueError(
                "--model.loss ce is for one label per image, and these images may have several: leave it out, or pass "
                "bce or focal"
            )
        smoothing = 0.0 if self.mixup is not None else hparams.smoothing  # mixing also smooths
        self.criterion = create_criterion(
            self.loss_name, smoothing=smoothing, gamma=hparams.focal_gamma, **self._class_weights(num_classes)
        )
        for split in ("val", "test"):
            setattr(self, f"{split}_loss", MeanMetric())
            metrics = create_metrics(num_classes, self.multi_label)
            for key, metric in metrics.items():
                setattr(self, f"{split}_{key}", metric)
            self._metric_names = tuple(metrics)

    def _class_weights(self, num_classes: int) -> dict[str, Tensor]:
        """Return the weights of the loss by the training images of each class, if the data ask for them."""
        if self.data.balance != "weights" or self.trainer.state.fn != "fit":
            return {}
        counts = self.data.class_counts()
        counts = F.pad(counts, (0, num_classes - len(counts)))  # the head may be wider
        if self.multi_label or self.loss_name == "bce":
            return {"pos_weight": positive_weights(counts, self.data.num_images("train"))}
        return {"weight": class_weights(counts)}

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
        return self._finish_step({self.loss_name: self._loss(self(image), target)}, len(image))

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits [B, num_classes] and of targets as from `_mix`."""
        logits = widened(logits)
        loss: Tensor = self.criterion(logits, target.to(logits.dtype) if target.ndim > 1 else target)
        return loss

    def _targets(self, batch: Batch) -> Tensor:
        """Return class indices [B] or, if images have several labels, these as zeros and ones [B, num_classes]."""
        target = batch.target
        return F.pad(target, (0, self.spec.num_classes - target.shape[1])) if self.multi_label else target

    def _mix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images and targets; if they are mixed, targets are shares of classes [B, num_classes]."""
        image, target = batch.image, self._targets(batch)
        if self.mixup is None:
            return image, target
        even = len(image) - len(image) % 2 or len(image)
        if even == 1:
            return image, target if self.multi_label else F.one_hot(target, self.spec.num_classes).float()
        mixed: tuple[Tensor, Tensor] = self.mixup(image[:even], target[:even])
        return mixed

    def _end_evaluation(self, split: str) -> None:
        """Check that an image was read."""
        name = "validation" if split == "val" else split
        seen = torch.tensor(float(getattr(self, f"{split}_loss").update_called), device=self.device)
        if not self.trainer.strategy.reduce(seen, reduce_op="sum"):
            first = (self.data.broken(name) or ["others have met them"])[0]
            raise ValueError(f"not one {name} image could be read, of those asked for; first {first}")

    def _evaluate(self, batch: Batch, split: str, batch_idx: int) -> None:
        count = len(batch.image)
        loss: Any = getattr(self, f"{split}_loss")
        metrics: dict[str, Any] = {key: getattr(self, f"{split}_{key}") for key in self._metric_names}
        logits, target = self(batch.image).float(), self._targets(batch)
        if count:
            if self.trainer.state.fn != "fit":  # training checks the loss
                require_finite(logits, batch.name, self.spec.model)
            entropy = F.binary_cross_entropy_with_logits if self.multi_label else F.cross_entropy
            loss.update(entropy(logits, target), count)
            for metric in metrics.values():
                metric.update(logits.sigmoid() if self.multi_label else logits, target)
        elif self.multi_label:  # average precision is gathered from all processes, also from one without images
            metrics["map"].update(logits, target)
        for key, metric in {"loss": loss, **metrics}.items():
            chosen = f"val_{key}" == self.monitor
            self.log(f"{split}_{key}", metric, on_epoch=True, prog_bar=chosen, batch_size=max(count, 1))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """Return the most probable class of each image, and its labels if images may have several."""
        logits = self(batch.image).float()
        require_finite(logits, batch.name, self.spec.model)
        names = self.spec.class_names or [str(number) for number in range(self.spec.num_classes)]
        thresholds = torch.full((len(names),), THRESHOLD) if self.multi_label else None
        return make_predictions(logits, batch.name, names, thresholds=thresholds)


def require_finite(logits: Tensor, names: Sequence[str], model: str) -> None:
    """Check logits [B, num_classes] of images; one of them would be the largest even if none is finite.

    Raises:
        ValueError: NaN or infinity; the message names the model and the first image.
    """
    if not logits.isfinite().all():
        raise ValueError(f"{model} gives no finite numbers for {names[0]} or one that follows it")
