"""What all trainings share: a model of timm's registry, its optimizer and schedule, divergence, checkpoints."""

import math
import shlex
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from visionattn.checks import check_range
from visionattn.data import ImageClassificationData
from visionattn.data.module import ImageData
from visionattn.losses.uncertainty import UncertaintyWeightedLoss
from visionattn.tasks.checkpoint import (
    METADATA_KEY,
    ClassifierSpec,
    check_model_name,
    describe_classifier,
    load_plain,
)
from visionattn.tasks.preprocessing import adapt_preprocessing, differing_keys, model_preprocessing
from visionattn.training.branches import branch_names, compile_branches
from visionattn.training.checkpoints.sharded import shard_model
from visionattn.training.objective import decayed_weights, extra_losses
from visionattn.training.optimization import RunSchedule, Schedule, create_optimizer, create_schedule, scale_bias_rate
from visionattn.training.regularization import create_regularized
from visionattn.training.resuming import check_length, check_optimizer

DEFAULT_LR = 1e-3
REFERENCE_BATCH = 256
"""``lr_base`` is for so many images per update."""


class DivergenceError(FloatingPointError):
    """The loss or the weights are no longer finite."""


class TrainingTask(LightningModule):
    """A model, how it is built and optimised; what is minimised is a subclass's.

    A subclass gives ``_build`` and the steps. ``training_step`` ends with ``_finish_step``. What a model's
    ``auxiliary_losses()`` gives, where it has such a method, is added to the loss; the parts are then logged apart, as
    ``train_loss_NAME``.

    Args:
        name: the model, e.g. ``nat_tiny``; ``timm.list_models()`` lists all.
        pretrained: start from the weights that come with it; a head of another width is made anew.
        drop_rate: dropout before the head; by default the model's own, 0 for none.
        drop_path_rate: stochastic depth; by default the model's own, 0 for none.
        model_kwargs: further arguments of the model.
        checkpoint_path: start from the weights in this file, which must fit but for the head.
        channels_last: keep images and weights in NHWC order, often faster on GPUs.
        compile: run the model through ``torch.compile``.
        grad_checkpointing: keep no activations within blocks for the backward pass, but compute them anew: less memory
            for more time.
        l2_penalty: factor of the sum of the L2 norms, not squared, of all tensors that weight decay would apply to,
            added to the loss and logged as ``train_loss_l2``; 0 for none.
        opt: optimizer, one of timm's, or ``kar3``, Terminator's.
        lr: peak learning rate; 0.001 where neither this nor ``lr_base`` is given.
        lr_base: peak learning rate for a batch of 256, scaled to the images that one update sees (batch size times
            devices times accumulation).
        bias_lr_factor: biases learn so many times as fast.
        weight_decay: not applied to biases and norms.
        momentum: for optimizers that have one.
        layer_decay: factor between the learning rates of successive layers, for fine-tuning.
        opt_kwargs: further arguments of the optimizer, e.g. ``{betas: [0.9, 0.95]}``.
        agc: adaptive gradient clipping with this factor, everywhere but in the head; 0 for none.
        sched: shape of the learning-rate schedule over the run.
        warmup_epochs: linear warm-up, part of the run and at most a quarter of it.
        warmup_lr: where it starts.
        cooldown_epochs: epochs at ``min_lr`` at the end, at most a quarter of the run.
        min_lr: where the schedule ends.
        sched_on_updates: change the rate after each update instead of each epoch.
        sched_kwargs: further arguments of timm's scheduler factory.

    Raises:
        ValueError: an unknown model, options that contradict each other, or (later) data that do not fit the head.
        DivergenceError: in training, when the loss is NaN or infinite.
    """

    kind: ClassVar[str]
    """Value of ``--task``, also stored in checkpoints."""
    data_class: ClassVar[type[ImageData]] = ImageClassificationData
    monitor: ClassVar[str] = "val_top1"
    """Metric that selects ``best.ckpt``."""
    mode: ClassVar[Literal["max", "min"]] = "max"
    """Whether the largest or the smallest value of ``monitor`` is the best."""
    rates: ClassVar[Mapping[str, str]] = {"top1": "top-1", "top5": "top-5"}
    """Names in words of the validation metrics that are shown as percentages."""
    shown: ClassVar[tuple[str, ...]] = ("val_loss", "val_top1")
    """Validation metrics in the line of each epoch."""
    eval_command: ClassVar[str | None] = "classify"
    """Command of ``eval.py`` that evaluates a checkpoint; None if the next step is fine-tuning."""
    help_text: ClassVar[str]
    """Purpose in the help of ``--task``."""
    card_text: ClassVar[str]
    """Description of the model in a model card, after "This is"."""
    has_head: ClassVar[bool] = False
    """Whether the model's own classifier gives the answers."""
    model_alone: ClassVar[bool] = False
    """Whether the model's weights suffice to evaluate and predict, without other modules of the task."""
    shardable: ClassVar[bool] = False
    """Whether all parameters belong to the model and only its ``forward`` uses them, as FSDP2 requires."""
    resumed: bool = False
    """Whether all weights will come from a checkpoint; the trainer knows it only once the model is built."""
    spec: ClassifierSpec  # known once the model is built

    def __init__(
        self,
        name: str = "nat_pico",
        pretrained: bool = False,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        model_kwargs: dict[str, Any] | None = None,
        checkpoint_path: str | None = None,
        channels_last: bool = False,
        compile: bool = False,
        grad_checkpointing: bool = False,
        l2_penalty: float = 0.0,
        opt: str = "adamw",
        lr: float | None = None,
        lr_base: float | None = None,
        bias_lr_factor: float = 1.0,
        weight_decay: float = 0.05,
        momentum: float = 0.9,
        layer_decay: float | None = None,
        opt_kwargs: dict[str, Any] | None = None,
        agc: float | None = None,
        sched: Schedule = "cosine",
        warmup_epochs: float = 0.0,
        warmup_lr: float = 1e-6,
        cooldown_epochs: float = 0.0,
        min_lr: float = 0.0,
        sched_on_updates: bool = True,
        sched_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_model_name(name)
        if lr is not None and lr_base is not None:
            raise ValueError(f"--model.lr {lr} and --model.lr_base {lr_base} exclude each other: pass one")
        for option, number in (
            ("lr", lr),
            ("lr_base", lr_base),
            ("min_lr", min_lr),
            ("warmup_lr", warmup_lr),
            ("warmup_epochs", warmup_epochs),
            ("cooldown_epochs", cooldown_epochs),
            ("weight_decay", weight_decay),
            ("momentum", momentum),
            ("layer_decay", layer_decay),
            ("agc", agc),
            ("l2_penalty", l2_penalty),
        ):
            check_range(f"model.{option}", number, 0)
        check_range("model.bias_lr_factor", bias_lr_factor, 0, above=True)
        check_range("model.drop_rate", drop_rate, 0, 1)
        check_range("model.drop_path_rate", drop_path_rate, 0, 1)
        self.save_hyperparameters()  # those of the subclass, too
        self.model: nn.Module | None = None
        self.weighting: UncertaintyWeightedLoss | None = None
        self._penalised: list[Tensor] = []
        self.schedule: RunSchedule
        self._updates_ahead = 0  # of those done, in a run resumed with batches of another size
        self._pending: tuple[Tensor, int, int] | None = None  # loss, step, epoch: not yet known to be finite

    # Building

    @property
    def options(self) -> Any:
        """The constructor's arguments."""
        return self.hparams

    @property
    def data(self) -> Any:
        """The DataModule of the run."""
        trainer: Any = self.trainer  # its attribute is not declared
        return trainer.datamodule

    def configure_model(self) -> None:
        """Builds model, losses and metrics, now that the number of classes is known. Called more than once."""
        if self.model is not None:
            return
        hparams = self.options
        self._build()
        assert self.model is not None
        if hparams.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if hparams.grad_checkpointing:
            self._checkpoint_gradients()
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            self._shard()
        elif hparams.compile:
            self.model.compile()
            compile_branches(self.model)
        self._penalised = decayed_weights(self.model) if hparams.l2_penalty else []
        # Images to predict come without classes; those of published weights are known.
        is_published = hparams.pretrained and not hparams.checkpoint_path
        published = describe_classifier(self.model, hparams.name, pretrained=is_published, **self._model_kwargs)
        self.spec = ClassifierSpec(
            hparams.name,
            self._model_kwargs,
            int(self.model.num_classes),
            self.data.class_names or published.class_names,
            self.data.preprocessing,
            self.data.name,
            self.kind,
        )

    @classmethod
    def describe_score(cls, value: float) -> str:
        """Return a value of ``monitor`` in words."""
        name = cls.monitor.removeprefix("val_")
        return f"{cls.rates[name]} {value:.2%}" if name in cls.rates else f"{name} {value:.4f}"

    @abstractmethod
    def _build(self) -> None:
        """Sets ``model``, which ``_create`` makes, and whatever else holds parameters or counts."""

    def _checkpoint_gradients(self) -> None:
        model: Any = self.model
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:  # timm's way to say that there is none
            raise ValueError(
                f"{self.options.name} cannot compute its activations anew: leave out --model.grad_checkpointing"
            ) from error

    def _shard(self) -> None:
        """Divides the model among the devices, where nothing beside it would have to be divided, too."""
        hparams, model, mesh = self.options, self.model, self.device_mesh
        assert model is not None
        assert mesh is not None
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        unfit = {
            f"--task {self.kind}": not self.shardable,
            "--ema": any(isinstance(callback, WeightAveraging) for callback in callbacks),
            "--model.agc": hparams.agc,
            "--model.l2_penalty": hparams.l2_penalty,
            f"the auxiliary loss of {hparams.name}": hasattr(model, "auxiliary_losses"),
            "tensor parallelism": mesh["tensor_parallel"].size() > 1,
        }
        if found := next((what for what, there in unfit.items() if there), None):
            raise ValueError(f"{found} does not go with FSDP2: use --trainer.strategy ddp, or leave it out")
        shard_model(model, mesh["data_parallel"], hparams.compile)

    def _weigh_branches(self) -> None:
        """Weights the losses of a model of several branches by learned uncertainties."""
        assert self.model is not None
        names = branch_names(self.model)
        self.weighting = UncertaintyWeightedLoss(names) if len(names) > 1 else None

    @property
    def _model_kwargs(self) -> dict[str, Any]:
        """Arguments that shape the model, without those that matter in training alone."""
        kwargs = dict(self.options.model_kwargs or {})
        channels = self.data.preprocessing["input_size"][0]
        return kwargs if channels == 3 else {"in_chans": channels, **kwargs}

    def _create(self, num_classes: int | None) -> nn.Module:
        hparams = self.options
        options = {**self._model_kwargs, **({} if num_classes is None else {"num_classes": num_classes})}
        # Weights that a checkpoint will overwrite are not worth fetching.
        fresh = not self.resumed
        model = create_regularized(
            hparams.name,
            {key: hparams[key] for key in ("drop_rate", "drop_path_rate")},
            pretrained=hparams.pretrained and fresh,
            **options,
        )
        if hparams.pretrained:
            self._compare_preprocessing(model)
        if hparams.checkpoint_path and fresh:
            initial = load_plain(hparams.checkpoint_path, hparams.name, model_kwargs=self._model_kwargs).state_dict()
            _load_all_but_heads(model, initial)
            if self.has_head and self.trainer.state.fn != "fit":
                _require_heads(model, initial, hparams.checkpoint_path)
        return model

    def _compare_preprocessing(self, model: nn.Module) -> None:
        """Warn of a normalisation other than the weights', with the options that mend it."""
        used = self.data.preprocessing
        wanted = adapt_preprocessing(model_preprocessing(model), {"in_chans": used["input_size"][0]})
        for key in differing_keys(used, wanted):
            if key in ("mean", "std"):
                ours, theirs = list(used[key]), [round(value, 6) for value in wanted[key]]
                rank_zero_warn(
                    f"{self.options.name} was pretrained with {key} {theirs}, the data have {ours}: "
                    f"--data.{key} '{theirs}' makes them agree"
                )

    @property
    def _heads(self) -> nn.ModuleList:
        assert self.model is not None
        return nn.ModuleList(_heads(self.model))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule over the length of the run."""
        assert self.model is not None
        hparams, trainer = self.options, self.trainer
        if trainer.limit_train_batches == 0:
            raise ValueError(
                "--trainer.limit_train_batches 0 leaves nothing to train on: pass 1 or more, or leave it out"
            )
        trainer.fit_loop.setup_data()  # which max_steps alone does not make Lightning do
        updates = trainer.estimated_stepping_batches
        if updates in (-1, math.inf):
            raise ValueError("the schedule needs to know the length of the run: pass --trainer.max_epochs or max_steps")
        updates = max(updates, 1)  # of a run of no steps, too
        per_epoch = math.ceil(min(trainer.num_training_batches, updates * trainer.accumulate_grad_batches))
        seen = self.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        lr = DEFAULT_LR if hparams.lr is None else hparams.lr
        if hparams.lr_base is not None:
            lr = hparams.lr_base * seen / REFERENCE_BATCH
        optimizer = create_optimizer(
            self.model,
            hparams.opt,
            lr,
            hparams.weight_decay,
            hparams.momentum,
            hparams.layer_decay,
            hparams.opt_kwargs or {},
            others=[child for child in self.children() if child is not self.model],
        )
        if hparams.bias_lr_factor != 1:
            scale_bias_rate(optimizer, self, hparams.bias_lr_factor)
        self.schedule = create_schedule(
            optimizer,
            hparams.sched,
            total_updates=int(updates),
            updates_per_epoch=math.ceil(per_epoch / trainer.accumulate_grad_batches),
            warmup_epochs=hparams.warmup_epochs,
            warmup_lr=hparams.warmup_lr,
            cooldown_epochs=hparams.cooldown_epochs,
            min_lr=hparams.min_lr,
            on_updates=hparams.sched_on_updates,
            options=hparams.sched_kwargs or {},
        )
        interval = "step" if hparams.sched_on_updates else "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": interval}}  # type: ignore[return-value]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the rates of the next update or epoch."""
        if not isinstance(scheduler, RunSchedule):  # that a callback has put in its place, as Lightning's SWA does
            super().lr_scheduler_step(scheduler, metric)
        elif self.options.sched_on_updates:
            scheduler.step(self.global_step + self._updates_ahead)
        else:
            scheduler.step(self.current_epoch + 1)

    def on_train_start(self) -> None:
        """Put a resumed run in its place in the schedule, which is that of its options, not of its checkpoint."""
        trainer, schedule = self.trainer, self.schedule
        if trainer.ckpt_path is None:
            return
        epoch, batches = self.data.start
        ended = batches >= trainer.num_training_batches
        if self.options.sched_on_updates:
            if trainer.max_steps == -1 or schedule.length < trainer.max_steps:
                # The run is so many epochs long, and the updates behind it may have seen batches of another size.
                accumulated = trainer.accumulate_grad_batches
                per_epoch = math.ceil(trainer.num_training_batches / accumulated)
                within = per_epoch if ended else batches // accumulated
                self._updates_ahead = epoch * per_epoch + within - self.global_step
            schedule.resume(self.global_step + self._updates_ahead)
        else:
            schedule.resume(epoch + ended)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Adaptive clipping where it is asked for; clipping by norm or value is the trainer's."""
        if self.options.agc and self.model is not None:
            heads = set(self._heads.parameters())
            parameters = [parameter for parameter in self.model.parameters() if parameter not in heads]
            adaptive_clip_grad(parameters, self.options.agc)
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Steps

    def _arrange(self, image: Tensor) -> Tensor:
        """Images in the order of axes in memory that is wanted."""
        return image.contiguous(memory_format=torch.channels_last) if self.options.channels_last else image

    def on_train_epoch_start(self) -> None:
        """Lets data sets that are read in order shuffle anew."""
        self.data.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes mixup and stochastic depth a function of the step, as shuffling and augmentation are."""
        self.require_finite_loss()
        key = [self.data.seed, self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        np.random.seed(seed)
        # torch.manual_seed notes down all callers for each kind of device that is not in use: a millisecond.
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)

    def _finish_step(self, losses: Mapping[str, Tensor], count: int) -> Tensor:
        """The loss with what the model and the weights add to it; logs it, and its parts where there are several.

        Args:
            losses: what the task minimises, by name; weighted where the model has several branches.
            count: images in the batch.
        """
        assert self.model is not None
        extra = extra_losses(self.model, self.options.l2_penalty, self._penalised)
        loss: Any = sum(losses.values()) if self.weighting is None else self.weighting(losses)
        if len(losses) + len(extra) > 1:
            for name, part in {**losses, **extra}.items():
                self.log(f"train_loss_{name}", part.detach(), batch_size=count)
        if self.weighting is not None:
            self.log_dict({f"weight_{name}": weight for name, weight in self.weighting.weights().items()})
        loss = sum(extra.values(), start=loss)
        self._pending = loss.detach(), self.global_step, self.current_epoch
        self.log("train_loss", loss, prog_bar=True, batch_size=count)
        trainer: Any = self.trainer
        if trainer.log_every_n_steps and (self.global_step + 1) % trainer.log_every_n_steps == 0:
            self.log("lr-max", max(group["lr"] for group in trainer.optimizers[0].param_groups))
        return loss

    def require_finite_loss(self) -> None:
        """Looks at the last loss, one step late so that the device is not waited for.

        Raises:
            DivergenceError: it was not finite; the message names the step and the last good checkpoint.
        """
        if self._pending is None:
            return
        (loss, step, epoch), self._pending = self._pending, None
        if not torch.isfinite(loss):
            raise DivergenceError(f"the loss became {loss.item():g} at step {step} (epoch {epoch}); {self._advice()}")

    def _advice(self) -> str:
        # A resumed run that has written nothing yet still knows its best, which may be far older than its start.
        last, best = (
            [path for callback in self.trainer.checkpoint_callbacks if (path := getattr(callback, attribute, ""))]
            for attribute in ("last_model_path", "best_model_path")
        )
        kept = next(filter(None, [*last, self.trainer.ckpt_path, *best]), None)
        rate = "lr" if self.options.lr_base is None else "lr_base"
        if kept:
            return (
                f"resume from the last good checkpoint with --ckpt_path {shlex.quote(str(kept))} and a lower "
                f"--model.{rate} or --trainer.gradient_clip_val 1"
            )
        return (
            f"start again with a lower --model.{rate}, a longer --model.warmup_epochs or --trainer.gradient_clip_val 1"
        )

    def on_train_epoch_end(self) -> None:
        """The last loss of the epoch has no next step that would look at it."""
        self.require_finite_loss()

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what :func:`visionattn.tasks.checkpoint.load_classifier` needs; never lets bad weights be written."""
        self.require_finite_loss()
        # Of weights that are divided among devices, this process's part, or all on the first and none on the others.
        weights = [
            value.to_local() if isinstance(value, DTensor) else value
            for value in checkpoint["state_dict"].values()
            if value.is_floating_point()
        ]
        if weights and not torch.stack([torch.isfinite(value).all() for value in weights]).all():
            raise DivergenceError(f"weights are no longer finite at step {self.global_step}; {self._advice()}")
        checkpoint[METADATA_KEY] = self.spec.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compares architectures first, for a message that is shorter than a list of keys."""
        path = self.trainer.ckpt_path
        if METADATA_KEY not in checkpoint:
            raise ValueError(f"{path} is not a checkpoint of train.py: start from it with --model.checkpoint_path")
        held = ClassifierSpec.from_dict(checkpoint[METADATA_KEY])
        if held.task != self.spec.task:
            raise ValueError(f"{path} was trained with --task {held.task}, not {self.spec.task}")
        for what in ("model", "num_classes", "model_kwargs"):
            theirs, ours = getattr(held, what), getattr(self.spec, what)
            if theirs != ours:
                raise ValueError(f"{path} holds another architecture: {what} {theirs!r}, here {ours!r}")
        if self.trainer.state.fn == "fit":
            check_optimizer(path, checkpoint.get("hyper_parameters", {}), self.options)
            check_length(path, checkpoint, self.trainer.max_epochs, self.trainer.max_steps)


def _heads(model: Any) -> tuple[nn.Module, ...]:
    """The classifier, or several, as models with several branches have them."""
    classifier = model.get_classifier()
    return classifier if isinstance(classifier, tuple) else (classifier,)


def _require_heads(model: nn.Module, initial: Mapping[str, Tensor], path: str) -> None:
    """Check that a file had weights for the classifiers, which would otherwise answer at random.

    Raises:
        ValueError: it had none, or some of another width.
    """
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    for name in (own[id(parameter)] for head in _heads(model) for parameter in head.parameters()):
        if name not in initial or initial[name].shape != model.get_parameter(name).shape:
            raise ValueError(f"{path} has no weights for the head, {name}: train.py fit trains one")


def _load_all_but_heads(model: nn.Module, initial: Mapping[str, Tensor]) -> None:
    """Takes weights from ``initial``, but for those of classifiers that are of another width."""
    heads = _heads(model)
    head = tuple(name for name, module in model.named_modules() if any(module is one for one in heads))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    kept = {
        name: value for name, value in initial.items() if not name.startswith(head) or value.shape == shapes.get(name)
    }
    model.load_state_dict(kept, strict=False)
