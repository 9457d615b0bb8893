"""Pretraining of a ViT without labels, as a masked autoencoder."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from visionattn.data import Batch
from visionattn.models.masked_autoencoder import (
    MaskedDecoder,
    Masking,
    check_encoder,
    encode_visible,
    fill_hidden,
    hidden_patches,
    mask_patches,
)
from visionattn.tasks.base import TrainingTask
from visionattn.training.examples import Examples
from visionattn.viz.reconstructions import save_reconstructions

DECODER = ("decoder_dim", "decoder_depth", "decoder_num_heads")


class MaskedAutoencodingTask(TrainingTask):
    """A ViT that learns from images only: a small decoder predicts the pixels of patches that the ViT did not see.

    The loss is the mean squared error of the pixels of hidden patches, each patch brought to mean 0 and variance 1
    (He et al., CVPR 2022, https://arxiv.org/abs/2111.06377). Labels are not used. Validation always hides the same
    patches of an image. A checkpoint holds the ViT under ``model.``, as timm has it but without a head, and the decoder
    beside it.

    Args:
        name: the ViT, e.g. ``vit_pico_patch4_32``; one of timm's ``VisionTransformer`` class.
        mask_ratio: share of hidden patches.
        decoder_dim: width of the decoder, a multiple of 4 and of ``decoder_num_heads``.
        decoder_depth: number of blocks of the decoder.
        decoder_num_heads: attention heads of each block.
        **options: options of :class:`~visionattn.tasks.base.TrainingTask`, which lists its errors.

    Raises:
        ValueError: a model that is no ViT, options out of their bounds, or (later) data of another size.
    """

    kind: ClassVar[str] = "mae"
    monitor: ClassVar[str] = "val_loss"
    mode: ClassVar[Literal["max", "min"]] = "min"
    rates: ClassVar[Mapping[str, str]] = {}
    shown: ClassVar[tuple[str, ...]] = ("val_loss",)
    eval_command: ClassVar[str | None] = None
    fixed: ClassVar[tuple[str, Sequence[str]]] = ("another decoder", DECODER)
    help_text: ClassVar[str] = "pretrain a ViT as a masked autoencoder"
    card_text: ClassVar[str] = (
        "an encoder that was pretrained without labels, as a masked autoencoder; the decoder is not part of it"
    )

    def __init__(
        self,
        name: str = "vit_pico_patch4_32",
        mask_ratio: float = 0.75,
        decoder_dim: int = 96,
        decoder_depth: int = 1,
        decoder_num_heads: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        if not 0 < mask_ratio < 1:
            raise ValueError(f"--model.mask_ratio must lie between 0 and 1, got {mask_ratio}")
        self.examples: Examples = Examples("reconstructions", save_reconstructions)

    # Building

    def setup(self, stage: str) -> None:
        """Refuse to predict."""
        if stage == "predict":
            raise ValueError("masked autoencoding predicts no classes: train.py validate measures its loss")

    def _build(self) -> None:
        hparams = self.options
        encoder = check_encoder(self._create(num_classes=0), hparams.name, self.data.item_shape[-2:])
        self.decoder = MaskedDecoder(encoder, *(hparams[key] for key in DECODER))
        self.model = encoder
        self._suit_device(self.decoder)
        if hparams.compile:
            # The task calls these parts, not the whole model.
            encoder.blocks.compile()
            self.decoder.compile()
        for split in ("val", "test"):
            setattr(self, f"{split}_loss", MeanMetric())

    # Steps

    def forward(self, image: Tensor) -> Tensor:
        """Return pooled features [B, D] of whole images [B, C, H, W]."""
        assert self.model is not None
        features: Tensor = self.model(self._arrange(image))
        return features

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Hide patches at random and return the loss."""
        # Drawn on the CPU, so that a seed means the same masks on any device.
        noise = torch.rand(len(batch.image), self._num_patches)
        loss, _, _ = self._reconstruct(batch.image, noise)
        return self._finish_step({"mse": loss}, len(batch.image))

    @property
    def _num_patches(self) -> int:
        model: Any = self.model
        return int(model.patch_embed.num_patches)

    def _evaluate(self, batch: Batch, split: str, batch_idx: int) -> None:
        count, kept = len(batch.image), self._keeps(split, batch_idx)
        metric = getattr(self, f"{split}_loss")
        if count:
            loss, predicted, masking = self._reconstruct(batch.image, fixed_noise(batch.name, self._num_patches))
            metric.update(loss, count)
            if kept:
                self._keep(batch.image[:kept].float(), Masking(*(x[:kept] for x in masking)), predicted[:kept])
        self.log(f"{split}_loss", metric, on_epoch=True, prog_bar=True, batch_size=max(count, 1))

    def _reconstruct(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Masking]:
        """Return loss, predicted pixels [B, M, h·w·C] and masks, from images and a number for each of their patches."""
        model: Any = self.model
        masking = mask_patches(noise.to(image.device), self.options.mask_ratio)
        predicted = self.decoder(encode_visible(model, self._arrange(image), masking.visible), masking).float()
        target = hidden_patches(image.float(), masking, self.decoder.patch_size)
        return F.mse_loss(predicted, target), predicted, masking

    def _keep(self, image: Tensor, masking: Masking, predicted: Tensor) -> None:
        masked, filled = (fill_hidden(image, masking, self.decoder.patch_size, x) for x in (None, predicted))
        self.examples.add(original=image, masked=masked, reconstructed=filled)


def fixed_noise(names: Sequence[str], num_patches: int) -> Tensor:
    """Return uniform noise [B, P] that depends only on the file name of an image, not on folder, epoch or batch."""
    seeds = [zlib.crc32(PurePath(name).name.encode()) for name in names]
    return torch.stack([torch.rand(num_patches, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
