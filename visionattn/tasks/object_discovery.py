"""Object discovery without labels: slots that rebuild images or their features."""

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from visionattn.checks import reason
from visionattn.data.module import ImageData
from visionattn.data.scenes import SceneBatch, SceneData
from visionattn.layers.slot_attention import SlotInit
from visionattn.metrics.object_discovery import ARI, CorLoc, ForegroundARI, MeanBestOverlap
from visionattn.models.slots import Decomposition, Method, SlotAutoencoder, encode
from visionattn.tasks.base import TrainingTask
from visionattn.training.checkpoints.loading import Weights, load_beside, load_checkpoint
from visionattn.training.checkpoints.spec import ModelSpec
from visionattn.training.examples import Examples
from visionattn.viz.slots import save_slots

SLOTS = tuple(signature(SlotAutoencoder).parameters)[1:]
"""Options of a :class:`~visionattn.models.slots.SlotAutoencoder`; the first parameter is the shape of its input."""

SLOTS_PREFIX = "slots."
"""Prefix of its weights in a checkpoint: its attribute in the LightningModule."""


class ObjectDiscoveryTask(TrainingTask):
    """Slots that learn from images only, and separate into objects.

    ``slot_attention`` trains an encoder and slots to reconstruct the image, each slot separately (Locatello et al.,
    NeurIPS 2020, https://arxiv.org/abs/2006.15055). ``dinosaur`` trains slots to rebuild the features of a frozen
    encoder (Seitzer et al., ICLR 2023, https://arxiv.org/abs/2209.14860), which should be pretrained: ``pretrained`` or
    ``checkpoint_path``. The loss is the mean squared error. Segments are used only in validation. A checkpoint holds
    the encoder under ``model.``, as timm has it but without a head, and slots and decoder beside it.

    Args:
        name: the encoder, any model of timm that gives feature maps: ``slot_cnn_pico``, ``slot_cnn``, a ViT, …
        method: ``slot_attention`` or ``dinosaur``.
        num_slots: number of slots, the maximum number of parts of an image.
        slot_dim: width of a slot; by default 64, or 256 for dinosaur.
        slot_hidden_dim: hidden width of the MLP that updates slots; by default 128, or 1024 for dinosaur.
        iterations: number of iterations of slot attention.
        slot_init: initial slots: drawn from one learned distribution (``gaussian``), or a learned vector for each slot
            (``learned``).
        implicit: compute gradients through the last iteration only.
        guided: multiply the masks of the decoder with the slots' attention.
        decoder_dim: channels of the decoder; by default 64, or 2048 for dinosaur.
        decoder_grid: slot_attention: edge of the grid on which the decoder starts.
        decoder_strides: slot_attention: factor by which each layer enlarges that grid. With ``decoder_grid`` 8,
            [2, 2, 2, 1] draws images of 64 pixels and [2, 2, 2, 2, 1] of 128; images are resized to that size for the
            loss.
        decoder_kernel: slot_attention: kernel size of the layers.
        decoder_patch: slot_attention: edge of the patch of pixels that is drawn at each place.
        **options: options of :class:`~visionattn.tasks.base.TrainingTask`, which lists its errors.

    Raises:
        ValueError: an encoder without feature maps, options out of their bounds, or (later) data of another size.
    """

    kind: ClassVar[str] = "object_discovery"
    data_class: ClassVar[type[ImageData]] = SceneData
    monitor: ClassVar[str] = "val_fg_ari"
    rates: ClassVar[Mapping[str, str]] = {"fg_ari": "FG-ARI"}
    shown: ClassVar[tuple[str, ...]] = ("val_loss", "val_fg_ari")
    eval_command: ClassVar[str | None] = "discover"
    fixed: ClassVar[tuple[str, Sequence[str]]] = ("other slots", SLOTS)
    help_text: ClassVar[str] = "slots that find objects"
    card_text: ClassVar[str] = "an encoder that slots found objects with; slots and decoder are not part of it"

    def __init__(
        self,
        name: str = "slot_cnn_pico",
        method: Method = "slot_attention",
        num_slots: int = 7,
        slot_dim: int | None = None,
        slot_hidden_dim: int | None = None,
        iterations: int = 3,
        slot_init: SlotInit = "gaussian",
        implicit: bool = False,
        guided: bool = False,
        decoder_dim: int | None = None,
        decoder_grid: int = 8,
        decoder_strides: tuple[int, ...] = (2, 2, 2, 1),
        decoder_kernel: int = 5,
        decoder_patch: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        self.examples: Examples = Examples("slots", _draw_slots)

    # Building

    @property
    def _frozen(self) -> bool:
        return bool(self.options.method == "dinosaur")

    def _build(self) -> None:
        hparams = self.options
        encoder = self._create(num_classes=0)
        self.slots = create_slots(encoder, hparams.name, self.data.item_shape, hparams)
        self.model = encoder
        if self._frozen:
            encoder.requires_grad_(False)
            self.train(self.training)
            if not (hparams.pretrained or hparams.checkpoint_path or self.resumed):
                rank_zero_warn(
                    f"the frozen {hparams.name} has random weights, whose features tell little: pass "
                    "--model.pretrained or --model.checkpoint_path FILE"
                )
        self._suit_device(self.slots)
        if hparams.compile:
            self.slots.compile()
        for split in ("val", "test"):
            setattr(self, f"{split}_loss", MeanMetric())
            setattr(self, f"{split}_scores", create_scores(f"{split}_"))

    def train(self, mode: bool = True) -> "ObjectDiscoveryTask":
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self._frozen and self.model is not None:
            self.model.eval()
        return self

    # Steps

    def forward(self, image: Tensor) -> Decomposition:
        """Return the slots of images [B, 3, H, W] and their reconstructions."""
        return self._decompose(image)[0]

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Return the loss; initial slots are drawn at each step."""
        return self._finish_step({"mse": self._decompose(batch.image)[1]}, len(batch.image))

    def _decompose(self, image: Tensor) -> tuple[Decomposition, Tensor]:
        """Return the slots of images and the loss."""
        assert self.model is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            features = encode(self.model, self._arrange(image))
        found: Decomposition = self.slots(features)
        return found, F.mse_loss(found.reconstruction, self.slots.target(image, features).float())

    def _evaluate(self, batch: SceneBatch, split: str, batch_idx: int) -> None:
        count, kept = len(batch.image), self._keeps(split, batch_idx)
        loss, scores = getattr(self, f"{split}_loss"), getattr(self, f"{split}_scores")
        if count:
            found, error = self._decompose(batch.image)
            slots = found.segments(batch.segments.shape[-2:])
            loss.update(error, count)
            scores.update(slots, batch.segments, batch.classes, batch.things)
            if kept:
                images = {"image": batch.image.float(), "segments": batch.segments, "slots": slots}
                if not self._frozen:  # slots of frozen features draw no images
                    images["rebuilt"] = found.reconstruction.float()
                self.examples.add(**{name: tensor[:kept] for name, tensor in images.items()})
        self.log(f"{split}_loss", loss, on_epoch=True, batch_size=max(count, 1))
        self.log_dict(scores, on_epoch=True, prog_bar=True, batch_size=max(count, 1))


def _draw_slots(tensors: Mapping[str, Tensor], *where: Any) -> None:
    save_slots(tensors["image"], tensors["segments"], tensors["slots"], tensors.get("rebuilt"), *where)


def create_scores(prefix: str = "") -> MetricCollection:
    """Return the metrics of object discovery: fractions, updated with slots, segments, classes and things."""
    scores = {
        "fg_ari": ForegroundARI(),
        "ari": ARI(),
        "mbo_i": MeanBestOverlap(),
        "mbo_c": MeanBestOverlap(by_class=True),
        "corloc": CorLoc(),
    }
    return MetricCollection(scores, prefix=prefix, compute_groups=False)  # type: ignore[arg-type]


def create_slots(encoder: nn.Module, name: str, shape: Sequence[int], options: Any) -> SlotAutoencoder:
    """Create slots for an encoder and images of one shape.

    Args:
        encoder: encoder of the features.
        name: its name, for messages.
        shape: shape (C, H, W) of the images.
        options: mapping with the options in ``SLOTS``.

    Raises:
        ValueError: the encoder gives no feature maps, or takes no such images; or options are out of bounds.
    """
    if not hasattr(encoder, "forward_intermediates"):
        raise ValueError(f"{name} gives no maps of features, which slots are bound to: choose another --model.name")
    training = encoder.training
    try:
        with torch.no_grad():
            features = encode(encoder.eval(), torch.zeros(1, *shape))
    except AssertionError as error:  # how timm's models say that they are for images of another size
        size = "×".join(map(str, shape[1:]))
        raise ValueError(
            f"{name} does not take images of {size} pixels ({reason(error)}): pass --data.image_size N, or "
            "--model.model_kwargs '{img_size: N}'"
        ) from error
    finally:
        encoder.train(training)
    return SlotAutoencoder(features.shape[1:], **{key: options[key] for key in SLOTS})


def load_slots(path: str | Path, weights: Weights = "average") -> tuple[nn.Module, SlotAutoencoder, ModelSpec]:
    """Return encoder, slots and spec of a checkpoint of object discovery, in evaluation mode on the CPU.

    Args:
        path: the file.
        weights: an exponential moving average if there is one, or the raw weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of object discovery.
    """
    encoder, spec = load_checkpoint(path, weights)
    if spec.task != "object_discovery":
        raise ValueError(f"{path} was trained with --task {spec.task}, it has no slots")
    held, options = load_beside(path, SLOTS_PREFIX, weights)
    slots = create_slots(encoder, spec.model, spec.preprocessing["input_size"], options)
    slots.load_state_dict(held)
    return encoder, slots.eval(), spec
