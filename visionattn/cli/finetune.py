"""The command finetune: ``fit`` with a shipped config, and with settings that follow from the images and the model."""

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from visionattn.checks import check_range
from visionattn.cli.configs import given_options, named_configs, place_of
from visionattn.cli.errors import UsageError
from visionattn.cli.fitting import FitResult, flat_options, train
from visionattn.cli.kinds import find_task
from visionattn.cli.training import TrainingCLI, training_settings
from visionattn.data import ImageClassificationData
from visionattn.evaluation.source import WEIGHT_FILES
from visionattn.io import slug
from visionattn.tasks import TASKS
from visionattn.tasks.finetuning import check_start, choose_settings, count_updates, open_data
from visionattn.tasks.start import start_from
from visionattn.training import read_checkpoint, require_own_model, stored_spec
from visionattn.training.runs import find_checkpoint, say
from visionattn.words import counted

CONFIG = "finetune"
TABLES = (".csv", ".tsv")
SHORT = {
    "--checkpoint": "--model.checkpoint_path",
    "--epochs": "--trainer.max_epochs",
    "--lr": "--model.lr",
    "--batch_size": "--data.batch_size",
}
"""Options of ``fit`` by their short names here."""
RATES = {"lr": "lr_base", "lr_base": "lr"}
"""Learning rates, of which a given one replaces the other."""

HELP = """\
usage: visionattn finetune FOLDER --model NAME [options]

Train a pretrained model on your images. FOLDER has a folder of images for each class, or train/ and val/ with such
folders. It may also be a table of files and labels, a .csv or .tsv file. If there are no images to validate on, a fifth
of each class is held out, the same images every time.

options:
  --model NAME         model with published weights, such as nat_pico.cifar10, or the checkpoint of a training
  --checkpoint FILE    start from the weights in this file instead of the published ones
  --epochs N           5 to 50 by default, fewer for more images
  --batch_size N       images per step and device; 64 by default, fewer if there are few images
  --lr RATE            peak learning rate; by default 5e-4, and more for batches above 64 images
  --early_stopping N   stop after N epochs without a better score
  --ckpt_path last     resume the newest run

Every option of visionattn fit is accepted and wins, such as --data.img_size 64 or --model.mixup 0.2. visionattn fit
--help lists them. The other defaults are in the shipped config finetune.
"""


class FinetuneCLI(TrainingCLI):
    """Training with the config ``finetune``, and with settings that follow from the images and the model.

    Options that are given win over both.

    Args:
        argv: the command line, from ``finetune`` on.
        prog: the program before it.
        callbacks: as for `TrainingCLI`.
    """

    def __init__(self, argv: list[str], prog: str = "visionattn", callbacks: Sequence[Callback] = ()) -> None:
        self.typed = argv
        self.opened: ImageClassificationData | None = None
        words = ["fit", f"--config={CONFIG}", *fit_words(argv)]
        if not TASKS[task := find_task(words)].has_head:
            raise UsageError(f"finetune trains classifiers: visionattn fit has --task {task} and --model.pretrained")
        super().__init__(words, prog, callbacks)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse twice; the settings that follow from the options of the first time are options of the second."""
        command, config, *given = args
        super().parse_arguments(parser, [word for word in args if not word.startswith("--print_config")])
        check_range("epochs", self.options.trainer.max_epochs or 0, 1, error=UsageError)
        check_start(self.options.model)
        self.run_name = self.options.run_name or name_run(self.options)
        named, configs = {option for option, _ in given_options(given)}, named_configs(given)

        def is_given(option: str) -> bool:
            return f"--{option}" in named or any(place_of(config, option) for config in configs)

        words = self._held_options() or self._chosen_options(is_given)
        words += [f"--model.{other}=null" for rate, other in RATES.items() if is_given(f"model.{rate}")]
        words.append(f"--run_name={self.run_name}")
        super().parse_arguments(parser, [command, config, *words, *given])
        self.argv = self.typed
        if self.opened is not None:
            say(describe_settings(self.options, self.opened))

    def _held_options(self) -> list[str]:
        """Return the config of the run to resume, if there is one: its images may have changed since."""
        wanted = self.options.ckpt_path
        _, run = (None, None) if wanted is None else find_checkpoint(wanted, self.options.runs, self.run_name)
        config = run.newest_config() if run else None
        return [f"--config={config}"] if config else []

    def _chosen_options(self, is_given: Callable[[str], bool]) -> list[str]:
        """Open the images, and return the options that follow from them and from the model."""
        start_from(self.options, self.task, "fit", None)  # the kind of images to look for
        self.opened = open_data(self.options.data.as_dict())
        settings = choose_settings(self.options, self.opened, is_given)
        return [f"--{option}={value}" for option, value in flat_options(settings).items()]

    def instantiate_classes(self) -> None:
        """Build data, model and trainer."""
        super().instantiate_classes()
        if self.opened is not None:
            self.datamodule.reuse_lists(self.opened)


def fit_words(argv: Sequence[str]) -> list[str]:
    """Return the options of ``fit`` for the command line of ``finetune``.

    Raises:
        UsageError: no images or no model.
    """
    words = iter(argv[1:])
    found: list[str] = []
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if number == 0 and not word.startswith("-"):
            found += ["--data.labels" if Path(word).suffix.lower() in TABLES else "--data.root", word]
        elif option == "--model":
            found += _model_options(value if equals else next(words, ""))
        else:
            found.append(SHORT.get(option, option) + equals + value)
    options = {option for option, _ in given_options(found)}
    if options.isdisjoint({"--data.root", "--data.labels", "--data.name", "--config"}):
        raise UsageError("finetune needs images first: visionattn finetune FOLDER --model NAME")
    if options.isdisjoint({"--model.name", "--config"}):
        plain = (option for option in options if option.startswith("--") and "." not in option)
        if near := get_close_matches("--model", plain):
            raise UsageError(f"unknown option {near[0]}; did you mean --model?")
        raise UsageError("finetune needs --model NAME, such as nat_pico.cifar10, or --model CHECKPOINT")
    return found


def _model_options(name: str) -> list[str]:
    """Return the options for a model by name, or for the one that a checkpoint holds."""
    if Path(name).suffix not in WEIGHT_FILES:
        return ["--model.name", name]
    spec = stored_spec(read_checkpoint(Path(name)), name)
    if spec is None:
        raise UsageError(f"{name} does not say which model it holds: pass --model NAME --checkpoint {name}")
    require_own_model(spec, name, f"--checkpoint {name} --model")
    kwargs = ["--model.model_kwargs", json.dumps(spec.model_kwargs)] if spec.model_kwargs else []
    return ["--model.name", spec.model, *kwargs, "--model.checkpoint_path", name]


def name_run(options: Any) -> str:
    """Return the name of a run: that of the images and of the model."""
    data = options.data
    place = data.root if data.name in (None, "folder", "tar") else None
    images = Path(data.labels).stem if data.labels else Path(place).resolve().name if place else data.name
    return slug(f"{images}-{options.model.name}")


def describe_settings(options: Any, data: ImageClassificationData) -> str:
    """Return lines that say how the images are divided, and the settings that follow from them."""
    count, epochs = data.num_images("train"), options.trainer.max_epochs
    batch, accumulated = options.data.batch_size, options.trainer.accumulate_grad_batches
    length = counted(epochs, "epoch")
    if count is not None:
        length += f" of {counted(count_updates(count, batch, accumulated), 'update')}"
    warmup, decay = f"warm-up {options.model.warmup_epochs:g}", f"layer decay {options.model.layer_decay:g}"
    average = f"moving average {options.ema}" if options.ema else "no moving average"
    images = f"{counted(batch * accumulated, 'image')} per update"
    rate = f"learning rate {options.model.lr:g}" if options.model.lr else f"{options.model.lr_base:g} for 256 images"
    lines = [f"fine-tuning: {length}, {images}, {rate}, {warmup}, {decay}, {average}"]
    if data.divides_itself and data.val_share is not None:
        share = f"{data.val_share:.0%} of the images of each class, the same every time"
        lines.insert(0, f"validation: {share}; split.csv of the run lists them")
    return "\n".join(lines)


def finetune(
    images: str | Path,
    model: str | Path,
    *overrides: Mapping[str, Any],
    checkpoint: str | Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> FitResult:
    """Train a pretrained model on images as the command ``visionattn finetune`` does, and return the score.

    Args:
        images: Folder with a folder of images for each class, or with ``train`` and ``val``; or a table of labels.
        model: Name of a model with published weights, or the checkpoint of a training.
        *overrides: Options of ``fit`` by name, as :func:`visionattn.fit` takes them; they win.
        checkpoint: File of weights to start from instead of the published ones.
        epochs: Number of epochs, by default from the number of images.
        batch_size: Images per step and device.
        lr: Peak learning rate.
        callbacks: Further callbacks of Lightning.
        quiet: Print nothing.

    Raises:
        UsageError: An unknown option or model, or a model without weights.
        UserError: Data or weights are missing, or do not fit.
    """
    short = {"checkpoint": checkpoint, "epochs": epochs, "batch_size": batch_size, "lr": lr}
    options: dict[str, Any] = {"model": str(model)}
    for mapping in ({name: value for name, value in short.items() if value is not None}, *overrides):
        options |= flat_options(mapping)
    words = ["finetune", str(images), *(f"--{name}={value}" for name, value in options.items())]
    return train(FinetuneCLI, words, callbacks, quiet)


def main(argv: list[str], prog: str = "visionattn") -> None:
    """Run the command, as ``visionattn.cli.errors.run`` expects."""
    if len(argv) == 1 or argv[1] in ("-h", "--help"):
        print(HELP, end="")
        return
    with training_settings():
        FinetuneCLI(argv, prog)
