"""Base of all kinds of training: builds a model, its optimizer and schedule, and checks losses and checkpoints."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from visionattn.checks import check_range
from visionattn.data import ImageClassificationData
from visionattn.data.module import ImageData
from visionattn.losses.uncertainty import UncertaintyWeightedLoss
from visionattn.training.branches import branch_names, compile_branches
from visionattn.training.checkpoints.loading import describe_model, load_plain
from visionattn.training.checkpoints.sharded import shard_model
from visionattn.training.checkpoints.spec import METADATA_KEY, ModelSpec
from visionattn.training.devices import suit_device
from visionattn.training.divergence import DivergenceCheck
from visionattn.training.examples import Examples, wanted
from visionattn.training.initial_weights import classifiers, load_all_but_heads, require_heads, warn_of_normalization
from visionattn.training.lightning_internals import log_step
from visionattn.training.models import check_model_name, create_regularized
from visionattn.training.objective import (
    METHODS,
    decayed_weights,
    extra_losses,
    measurements,
    modules_with,
    modules_with_losses,
    update_buffers,
)
from visionattn.training.optimization import Optimization, create_optimizer
from visionattn.training.resuming import check_length, check_optimizer
from visionattn.training.schedule import RunSchedule, create_schedule


class TrainingTask(LightningModule):
    """A model, how it is built and optimised; a subclass defines what is minimised.

    A subclass gives ``kind``, ``help_text``, ``card_text``, ``_build``, ``_evaluate`` and ``training_step``, which ends
    with ``_finish_step``. If the model has a method ``auxiliary_losses()``, its losses are added to the loss; the parts
    are then also logged as ``train_loss_NAME``. `visionattn.training.objective` lists the methods of modules that a
    training calls.

    Args:
        name: the model, e.g. ``nat_tiny``; ``timm.list_models()`` lists all.
        pretrained: start from the published weights; a head of another width starts from random weights.
        drop_rate: dropout before the head; by default the model's own, 0 for none.
        drop_path_rate: stochastic depth; by default the model's own, 0 for none.
        model_kwargs: further arguments of the model.
        checkpoint_path: start from the weights in this file, which must fit except for the head.
        channels_last: keep images and weights in NHWC order; by default on CPUs for convolutional models, which gain.
        compile: run the model through ``torch.compile``.
        grad_checkpointing: recompute activations within blocks in the backward pass: less memory for more time.
        l2_penalty: factor of the sum of the L2 norms, not squared, of all tensors that weight decay would apply to,
            added to the loss and logged as ``train_loss_l2``; 0 for none.
        **optimization: optimizer and schedule, see :class:`~visionattn.training.optimization.Optimization`.

    Raises:
        ValueError: an unknown model, options that contradict each other, or (later) data that do not fit the head.
        DivergenceError: in training, if the loss is NaN or infinite.
    """

    kind: ClassVar[str]
    """Value of ``--task``, also stored in checkpoints."""
    data_class: ClassVar[type[ImageData]] = ImageClassificationData
    mode: ClassVar[Literal["max", "min"]] = "max"
    """Whether the largest or the smallest value of ``monitor`` is the best."""
    rates: ClassVar[Mapping[str, str]] = {}
    """Names in words of the validation metrics that are shown as percentages."""
    eval_command: ClassVar[str | None] = "classify"
    """Command of ``eval.py`` that evaluates a checkpoint, or ``test`` of ``train.py``; None to fine-tune next."""
    help_text: ClassVar[str]
    """Purpose in the help of ``--task``."""
    card_text: ClassVar[str]
    """Description of the model in a model card, after "This is"."""
    has_head: ClassVar[bool] = False
    """Whether the model's own classifier gives the answers."""
    model_alone: ClassVar[bool] = False
    """Whether the model's weights suffice to evaluate and predict, without other modules of the task."""
    fixed: ClassVar[tuple[str, Sequence[str]]] = ("", ())
    """Settings that a resumed run must not change beside the model, in words, and its options."""
    shardable: ClassVar[bool] = False
    """Whether all parameters belong to the model and only its ``forward`` uses them, as FSDP2 requires."""
    examples: Examples | None = None
    """Images of the last validation, to be drawn."""
    resumed: bool = False
    """Whether all weights will come from a checkpoint; the trainer knows this only after the model is built."""
    starts_from: ModelSpec | None = None
    """Description of the weights that a command starts from, if it knows one."""
    spec: ModelSpec
    """Description of the model, set by ``configure_model``."""
    memory_format: torch.memory_format = torch.contiguous_format
    """Memory format of images; ``configure_model`` chooses it."""

    def __init__(
        self,
        name: str = "nat_pico",
        pretrained: bool = False,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        model_kwargs: dict[str, Any] | None = None,
        checkpoint_path: str | None = None,
        channels_last: bool | None = None,
        compile: bool = False,
        grad_checkpointing: bool = False,
        l2_penalty: float = 0.0,
        **optimization: Any,
    ) -> None:
        super().__init__()
        check_model_name(name)
        check_range("model.l2_penalty", l2_penalty, 0)
        check_range("model.drop_rate", drop_rate, 0, 1)
        check_range("model.drop_path_rate", drop_path_rate, 0, 1)
        self.optimization = Optimization(**optimization)
        self.save_hyperparameters(asdict(self.optimization))
        self.save_hyperparameters()  # also those of the subclass
        self.model: nn.Module | None = None
        self.weighting: UncertaintyWeightedLoss | None = None
        self.divergence = DivergenceCheck("lr" if self.optimization.lr_base is None else "lr_base")
        self._penalised: list[Tensor] = []
        self._methods: set[str] = set()  # those of METHODS that the model has
        self.schedule: RunSchedule
        self._updates_ahead = 0  # of the updates done, in a run that was resumed with another batch size

    # Building

    @property
    def options(self) -> Any:
        """Arguments of the constructor."""
        return self.hparams

    @property
    def data(self) -> Any:
        """DataModule of the run."""
        trainer: Any = self.trainer  # the attribute is not declared
        return trainer.datamodule

    @property
    def multi_label(self) -> bool:
        """True if an image may have several labels, by the data of a training and by the weights of an evaluation."""
        evaluated = None if self.trainer.state.fn == "fit" else self.starts_from
        return bool((evaluated or self.data).multi_label)

    @property
    @abstractmethod
    def monitor(self) -> str:
        """Metric that selects ``best.ckpt``; known once the data are set up."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Validation metrics in the line of each epoch."""
        return ("val_loss", self.monitor)

    def configure_model(self) -> None:
        """Build model, losses and metrics, now that the number of classes is known. Lightning calls it repeatedly."""
        if self.model is not None:
            return
        hparams = self.options
        if self.data.balance == "weights" and not self.has_head:
            raise ValueError(
                f"--data.balance weights is for losses of classes, and --task {self.kind} has none: leave it out"
            )
        self._build()
        assert self.model is not None
        self.memory_format = self._suit_device(self.model)
        if hparams.grad_checkpointing:
            self._checkpoint_gradients()
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            self._shard()
        elif hparams.compile:
            self.model.compile()
            compile_branches(self.model)
        self._penalised = decayed_weights(self.model) if hparams.l2_penalty else []
        self._methods = {method for method in METHODS if modules_with(self.model, method)}
        # Images to predict have no classes, but published weights may.
        is_published = hparams.pretrained and not hparams.checkpoint_path
        published = describe_model(self.model, hparams.name, pretrained=is_published, **self._model_kwargs)
        self.spec = ModelSpec(
            hparams.name,
            self._model_kwargs,
            int(self.model.num_classes),
            self.data.class_names or published.class_names,
            self.data.preprocessing,
            self.data.name,
            self.kind,
            self.multi_label,
        )

    def describe_score(self, value: float) -> str:
        """Return a value of ``monitor`` in words."""
        name = self.monitor.removeprefix("val_")
        return f"{self.rates[name]} {value:.2%}" if name in self.rates else f"{name} {value:.4f}"

    @abstractmethod
    def _build(self) -> None:
        """Set ``model``, with ``_create``, and everything else that has parameters or state."""

    def _suit_device(self, network: nn.Module) -> torch.memory_format:
        """Let a network compute as is fast on the device, and return the memory format of images."""
        strategy, half = self.trainer.strategy, "16" in str(self.trainer.precision)
        channels_last = False if isinstance(strategy, ModelParallelStrategy) else self.options.channels_last
        return suit_device(network, strategy.root_device, half, channels_last)

    def _checkpoint_gradients(self) -> None:
        model: Any = self.model
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:  # how timm's models say that they have none
            name = self.options.name
            raise ValueError(f"{name} cannot recompute activations: leave out --model.grad_checkpointing") from error

    def _shard(self) -> None:
        """Divide the model among the devices, unless something else would have to be divided with it."""
        hparams, model, mesh = self.options, self.model, self.device_mesh
        assert model is not None
        assert mesh is not None
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        unfit = {
            f"--task {self.kind}": not self.shardable,
            "--model.channels_last": hparams.channels_last,
            "--ema": any(isinstance(callback, WeightAveraging) for callback in callbacks),
            "--model.agc": hparams.agc,
            "--model.l2_penalty": hparams.l2_penalty,
            f"the auxiliary loss of {hparams.name}": bool(modules_with_losses(model)),
            "tensor parallelism": mesh["tensor_parallel"].size() > 1,
        }
        if found := next((what for what, there in unfit.items() if there), None):
            raise ValueError(f"{found} does not go with FSDP2: use --trainer.strategy ddp, or leave it out")
        shard_model(model, mesh["data_parallel"], hparams.compile)

    def _weigh_branches(self) -> None:
        """Weight the losses of a model with several branches by learned uncertainties."""
        assert self.model is not None
        names = branch_names(self.model)
        self.weighting = UncertaintyWeightedLoss(names) if len(names) > 1 else None

    @property
    def _model_kwargs(self) -> dict[str, Any]:
        """Arguments that define the model, without those that matter only in training."""
        kwargs = dict(self.options.model_kwargs or {})
        channels = self.data.preprocessing["input_size"][0]
        return kwargs if channels == 3 else {"in_chans": channels, **kwargs}

    def _create(self, num_classes: int | None) -> nn.Module:
        hparams = self.options
        options = {**self._model_kwargs, **({} if num_classes is None else {"num_classes": num_classes})}
        # A checkpoint overwrites all weights of a resumed run, so none are fetched.
        fresh = not self.resumed
        model = create_regularized(
            hparams.name,
            {key: hparams[key] for key in ("drop_rate", "drop_path_rate")},
            pretrained=hparams.pretrained and fresh,
            **options,
        )
        if hparams.pretrained:
            warn_of_normalization(model, hparams.name, self.data.preprocessing)
        if hparams.checkpoint_path and fresh:
            initial = load_plain(hparams.checkpoint_path, hparams.name, model_kwargs=self._model_kwargs).state_dict()
            load_all_but_heads(model, initial)
            if self.has_head and self.trainer.state.fn != "fit":
                require_heads(model, initial, hparams.checkpoint_path)
        return model

    @property
    def _heads(self) -> nn.ModuleList:
        assert self.model is not None
        return nn.ModuleList(classifiers(self.model))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create optimizer and schedule over the length of the run."""
        assert self.model is not None
        options, trainer = self.optimization, self.trainer
        if trainer.limit_train_batches == 0:
            raise ValueError(
                "--trainer.limit_train_batches 0 leaves nothing to train on: pass 1 or more, or leave it out"
            )
        trainer.fit_loop.setup_data()  # Lightning does not for max_steps alone
        updates = trainer.estimated_stepping_batches
        if updates in (-1, math.inf):
            raise ValueError("the schedule needs to know the length of the run: pass --trainer.max_epochs or max_steps")
        updates = max(updates, 1)  # also in a run of no steps
        accumulated = trainer.accumulate_grad_batches
        per_epoch = math.ceil(min(trainer.num_training_batches, updates * accumulated))
        lr = options.peak_rate(self.data.batch_size * trainer.world_size * accumulated)
        others = [child for child in self.children() if child is not self.model]
        optimizer = create_optimizer(self.model, options, lr, others)
        self.schedule = create_schedule(optimizer, options, int(updates), math.ceil(per_epoch / accumulated))
        interval = "step" if options.sched_on_updates else "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": interval}}  # type: ignore[return-value]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the rates of the next update or epoch."""
        if not isinstance(scheduler, RunSchedule):  # a callback has replaced it, as Lightning's SWA does
            super().lr_scheduler_step(scheduler, metric)
        elif self.optimization.sched_on_updates:
            scheduler.step(self.global_step + self._updates_ahead)
        else:
            scheduler.step(self.current_epoch + 1)

    def on_train_start(self) -> None:
        """Continue the schedule of a resumed run; its options define the schedule, not its checkpoint."""
        trainer, schedule = self.trainer, self.schedule
        if trainer.ckpt_path is None:
            return
        epoch, batches = self.data.start
        ended = batches >= trainer.num_training_batches
        if self.optimization.sched_on_updates:
            if trainer.max_steps == -1 or schedule.length < trainer.max_steps:
                # The length is given in epochs, and earlier updates may have had another batch size.
                accumulated = trainer.accumulate_grad_batches
                per_epoch = math.ceil(trainer.num_training_batches / accumulated)
                within = per_epoch if ended else batches // accumulated
                self._updates_ahead = epoch * per_epoch + within - self.global_step
            schedule.resume(self.global_step + self._updates_ahead)
        else:
            schedule.resume(epoch + ended)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients adaptively if ``agc`` is given; the trainer clips by norm or value."""
        if self.optimization.agc and self.model is not None:
            heads = set(self._heads.parameters())
            parameters = [parameter for parameter in self.model.parameters() if parameter not in heads]
            adaptive_clip_grad(parameters, self.optimization.agc)
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Steps

    def _arrange(self, image: Tensor) -> Tensor:
        """Return images in the memory format of the model."""
        return image.contiguous(memory_format=self.memory_format)

    def on_train_epoch_start(self) -> None:
        """Shuffle data sets that are read as a stream for the new epoch."""
        self.data.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed mixup and stochastic depth by the step, as shuffling and augmentation are."""
        self.divergence.check_loss(self.trainer)
        key = [self.data.seed, self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        np.random.seed(seed)
        # torch.manual_seed records its caller for each kind of device that is not in use, which takes a millisecond.
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate a batch of the validation split."""
        self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate a batch of the test split."""
        self._evaluate(batch, "test", batch_idx)

    @abstractmethod
    def _evaluate(self, batch: Any, split: str, batch_idx: int) -> None:
        """Update the metrics of a split, ``val`` or ``test``, and log them."""

    def on_validation_epoch_end(self) -> None:
        """Complete the evaluation of the validation split."""
        self._end_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Complete the evaluation of the test split."""
        self._end_evaluation("test")

    def _end_evaluation(self, split: str) -> None:
        """Check or measure what all processes have seen of a split."""

    def on_validation_epoch_start(self) -> None:
        """Forget the images of the last validation."""
        if self.examples is not None:
            self.examples.clear()

    def _keeps(self, split: str, batch_idx: int) -> int:
        """Return how many images of a batch to keep as examples."""
        return wanted(batch_idx, self.trainer.num_val_batches[0]) if split == "val" else 0

    def _finish_step(self, losses: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the loss of a step with auxiliary losses and penalties; log it, and its parts if there are several.

        The task's ``losses`` are weighted if the model has several branches. ``count`` is the size of the batch.
        """
        assert self.model is not None
        has_extra = "auxiliary_losses" in self._methods or self._penalised
        extra = extra_losses(self.model, self.options.l2_penalty, self._penalised) if has_extra else {}
        loss: Any = sum(losses.values()) if self.weighting is None else self.weighting(losses)
        if len(losses) + len(extra) > 1:
            for name, part in {**losses, **extra}.items():
                log_step(self, f"train_loss_{name}", part, count)
        if self.weighting is not None:
            self.log_dict({f"weight_{name}": weight for name, weight in self.weighting.weights().items()})
        if "measurements" in self._methods:
            self.log_dict(measurements(self.model), batch_size=count)
        loss = sum(extra.values(), start=loss)
        self.divergence.note(loss, self.global_step, self.current_epoch)
        log_step(self, "train_loss", loss, count, prog_bar=True)
        trainer: Any = self.trainer
        if trainer.log_every_n_steps and (self.global_step + 1) % trainer.log_every_n_steps == 0:
            self.log("lr-max", max(group["lr"] for group in trainer.optimizers[0].param_groups))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Update buffers that change in training, before a callback averages or saves them."""
        assert self.model is not None
        if "update_buffers" in self._methods:
            update_buffers(self.model)

    def on_train_epoch_end(self) -> None:
        """Check the last loss of the epoch."""
        self.divergence.check_loss(self.trainer)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save a diverged training; add what loading the model needs."""
        self.divergence.check_loss(self.trainer)
        self.divergence.check_weights(checkpoint["state_dict"].values(), self.trainer)
        checkpoint[METADATA_KEY] = self.spec.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare architectures first, for a message that is shorter than a list of keys."""
        path = self.trainer.ckpt_path
        if METADATA_KEY not in checkpoint:
            raise ValueError(f"{path} is not a checkpoint of train.py: start from it with --model.checkpoint_path")
        held = ModelSpec.from_dict(checkpoint[METADATA_KEY])
        if held.task != self.spec.task:
            raise ValueError(f"{path} was trained with --task {held.task}, not {self.spec.task}")
        for what in ("model", "num_classes", "model_kwargs", "multi_label"):
            theirs, ours = getattr(held, what), getattr(self.spec, what)
            if theirs != ours:
                raise ValueError(f"{path} holds another architecture: {what} {theirs!r}, here {ours!r}")
        if self.trainer.state.fn == "fit":
            check_optimizer(path, checkpoint.get("hyper_parameters", {}), self.options)
            check_length(path, checkpoint, self.trainer.max_epochs, self.trainer.max_steps)
        what, options = self.fixed
        for key in options:
            theirs, ours = checkpoint["hyper_parameters"].get(key), self.options[key]
            if theirs != ours:
                raise ValueError(f"{path} holds {what}: --model.{key} {theirs}, here {ours}")
