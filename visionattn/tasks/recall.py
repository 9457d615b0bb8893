"""Recall: a small model of any token mixer answers the questions on a map."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, R2Score

from visionattn.data.module import ImageData
from visionattn.data.recall import RecallBatch, RecallData
from visionattn.layers.mixers import MIXERS
from visionattn.tasks.base import TrainingTask
from visionattn.training.objective import widened

HOST = (
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "kernel_size", "cpe", "is_causal", "init_std"),
    *("mixer", "mixer_kwargs"),
)
"""Options of the task that are arguments of the model."""


class RecallTask(TrainingTask):
    """A small model that shows what its token mixer can remember: it answers the questions on a map of cells.

    Every cell is a token. The loss is computed at the cells that ask: cross-entropy of the value, or the squared error
    in regression. ``recall`` is the share of right answers. In regression, ``r2`` is one minus the squared error
    relative to that of the best constant.

    Args:
        name: a model of maps that takes the arguments below, ``iso_nano`` or one of your own.
        mixer: token mixer of the blocks, one of ``visionattn.layers.mixers.MIXERS``, or several that the blocks take in
            turn, such as ``[taylor, neighborhood]``.
        mixer_kwargs: options of the mixer, or a list of them, one per name of ``mixer``.
        embed_dim: width.
        depth: number of blocks.
        num_heads: heads of a mixer.
        mlp_ratio: hidden width of an MLP over its width.
        kernel_size: keys per query and axis, of mixers with windows.
        cpe: begin each block with a depthwise 3x3 convolution, which sees the neighbours of a cell.
        is_causal: let cells of a sequence see no later ones; every mixer must have this option.
        init_std: standard deviation of the initial weights of linear layers.
        **options: options of :class:`~visionattn.tasks.base.TrainingTask`, which lists its errors.

    Raises:
        ValueError: the model takes no such arguments, or has other tokens than cells; a mixer cannot be causal.
    """

    kind: ClassVar[str] = "recall"
    data_class: ClassVar[type[ImageData]] = RecallData
    rates: ClassVar[Mapping[str, str]] = {"recall": "recall"}
    eval_command: ClassVar[str | None] = "test"
    help_text: ClassVar[str] = "what token mixers remember"
    card_text: ClassVar[str] = "a model of the recall suite, which answers questions on maps of cells"

    def __init__(
        self,
        name: str = "iso_nano",
        mixer: list[str] | str = "neighborhood",
        mixer_kwargs: list[dict[str, Any] | None] | dict[str, Any] | None = None,
        embed_dim: int = 48,
        depth: int = 2,
        num_heads: int = 1,
        mlp_ratio: float = 2.0,
        kernel_size: int = 3,
        cpe: bool = True,
        is_causal: bool = False,
        init_std: float = 0.08,
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        causal = [name for name, kind in MIXERS.items() if "is_causal" in signature(kind).parameters]
        names = [mixer] if isinstance(mixer, str) else mixer
        if is_causal and (others := [name for name in names if name in MIXERS and name not in causal]):
            raise ValueError(
                f"--model.mixer {others[0]} sees later words of a sequence: choose from {', '.join(causal)}, or pass "
                "--model.is_causal false"
            )

    @property
    def monitor(self) -> str:
        """Metric that selects ``best.ckpt``."""
        return self._score_name("val")

    @property
    def _model_kwargs(self) -> dict[str, Any]:
        own = {key: self.options[key] for key in HOST if self.options[key] is not None}
        return {"patch_size": 1, **own, **super()._model_kwargs}

    def _build(self) -> None:
        problem, hparams = self.data.problem, self.options
        self.model = self._create(problem.num_outputs)
        model: Any = self.model
        if (model.in_chans, model.num_classes) != (wanted := (problem.input_size[0], problem.num_outputs)):
            raise ValueError(
                f"the weights are of {model.in_chans} channels and {model.num_classes} answers, and {problem} have "
                f"{wanted[0]} and {wanted[1]}: pass the --data options of their training"
            )
        if hparams.compile:
            model.blocks.compile()  # the task does not call the whole model
        for split in ("val", "test"):
            setattr(self, f"{split}_loss", MeanMetric())
            score = R2Score(multioutput="variance_weighted") if problem.is_regression else MeanMetric()
            setattr(self, self._score_name(split), score)

    def _score_name(self, split: str) -> str:
        return f"{split}_{'r2' if self.data.problem.is_regression else 'recall'}"

    # Steps

    def forward(self, image: Tensor, queries: Tensor) -> Tensor:
        """Return answers [B, Q, K] of maps [B, C, H, W] at positions [B, Q]."""
        model: Any = self.model
        features = model.forward_features(self._arrange(image))
        if features.shape[2:] != image.shape[2:]:
            size, cells = ("×".join(map(str, x.shape[2:])) for x in (features, image))
            raise ValueError(f"{self.options.name} has {size} tokens for {cells} cells: it must keep the size of a map")
        asked = features.flatten(2).mT.gather(1, queries[..., None].expand(-1, -1, features.shape[1]))
        return model.get_classifier()(asked)

    def training_step(self, batch: RecallBatch, batch_idx: int) -> Tensor:
        """Return the loss."""
        return self._finish_step({"answers": self._loss(self(batch.image, batch.queries), batch)}, len(batch.image))

    def _loss(self, answers: Tensor, batch: RecallBatch) -> Tensor:
        answers = widened(answers)
        if self.data.problem.is_regression:
            return F.mse_loss(answers, batch.target.to(answers.dtype))
        return F.cross_entropy(answers.flatten(0, 1), batch.target.flatten())

    def _evaluate(self, batch: RecallBatch, split: str, batch_idx: int) -> None:
        count, name = len(batch.image), self._score_name(split)
        loss, score = getattr(self, f"{split}_loss"), getattr(self, name)
        if count:
            answers = self(batch.image, batch.queries)
            loss.update(self._loss(answers, batch), count)
            if self.data.problem.is_regression:
                score.update(answers.flatten(0, 1).float(), batch.target.flatten(0, 1).float())
            else:
                score.update((answers.argmax(-1) == batch.target).float())
        elif self.data.problem.is_regression:  # the sums of all processes must have one shape
            nothing = batch.image.new_zeros(0, self.data.problem.num_outputs)
            score.update(nothing, nothing)
        self.log(f"{split}_loss", loss, on_epoch=True, batch_size=max(count, 1))
        self.log(name, score, on_epoch=True, prog_bar=True, batch_size=max(count, 1))
