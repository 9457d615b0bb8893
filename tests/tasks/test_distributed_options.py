"""Options that work with several processes, those refused in a line, and the commands of docs/recipes."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn

from tests.code_blocks import parse
from visionattn.data import DataError, ImageClassificationData
from visionattn.data.sampling import Draw, TrainSampler
from visionattn.models.masked_autoencoder import encode_visible
from visionattn.tasks.classification import ClassificationTask
from visionattn.tasks.fine_grained import FineGrainedTask
from visionattn.training.checkpoints.sharded import repeated_blocks, shard_model

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("size", "repeats", "world"), [(50, 0, 2), (50, 0, 3), (600, 3, 2), (7, 0, 3)])
def test_processes_together_see_the_batches_of_one(size: int, repeats: int, world: int) -> None:
    def draws(rank: int, world: int) -> list[Draw]:
        sampler = TrainSampler(size, 1, rank, world, repeats)
        sampler.set_epoch(3)
        return list(sampler)

    shares = [draws(rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    together = [draw for turn in zip(*shares, strict=True) for draw in turn]
    assert together == draws(0, 1)[: len(together)]
    assert size - world < len(together) or repeats


def test_place_in_an_epoch_is_shared_by_all_processes() -> None:
    class Data(ImageClassificationData):
        shard = (1, 2)

    data = Data(batch_size=4, img_size=16, num_workers=0, seed=0)
    data.setup("fit")
    whole = list(data.train_dataloader().sampler)
    data.load_state_dict({"epoch": 0, "batches": 3, "batch_size": 8, "world_size": 4})
    assert list(data.train_dataloader().sampler) == whole[3 * 8 * 4 // 2 :]


def test_data_with_fewer_images_than_processes_are_refused() -> None:
    with pytest.raises(DataError, match="2 images to train on are too few for 3 processes"):
        TrainSampler(2, world_size=3)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("nat_pico", "Block"), ("vit_pico_patch4_32", "Block"), ("swin_tiny_patch4_window7_224", "SwinTransformerBlock")],
)
def test_repeated_blocks_are_found(name: str, blocks: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    expected = [module for module in model.modules() if type(module).__name__ == blocks]
    assert len(expected) > 1
    assert repeated_blocks(model) == expected


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), "batch norms would differ .*--trainer.strategy ddp"),
        (nn.ParameterDict({"scale": nn.Parameter(torch.ones(()))}), "scale is a single number"),
        (nn.Linear(2, 2), "leave --seed_everything on"),
    ],
    ids=["batch norm", "scalar", "no seed"],
)
def test_unshardable_model_is_refused(model: nn.Module, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    mesh: Any = None  # looked at later
    with pytest.raises(ValueError, match=message):
        shard_model(model, mesh)


def configure(task: Any, strategy: Any = None, tensor_parallel: int = 1, callbacks: tuple[Any, ...] = ()) -> None:
    """Builds the model, as the trainer would with this strategy."""
    data = ImageClassificationData(img_size=32, num_workers=0)
    data.setup("fit")
    state = SimpleNamespace(fn="fit")
    cpu = torch.device("cpu")
    if strategy is None:
        strategy = SimpleNamespace(root_device=cpu)
    else:
        strategy.parallel_devices, strategy.cluster_environment = [cpu] * 2, LightningEnvironment()
    trainer = SimpleNamespace(
        strategy=strategy,
        precision="32-true",
        callbacks=list(callbacks),
        datamodule=data,
        ckpt_path=None,
        state=state,
    )
    task._trainer, task._fabric = trainer, None
    sizes = {"tensor_parallel": tensor_parallel, "data_parallel": 2}
    task._device_mesh = {name: SimpleNamespace(size=lambda size=size: size) for name, size in sizes.items()}
    task.configure_model()


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        (FineGrainedTask("dcal_vit_pico"), {}, "--task fine_grained"),
        (ClassificationTask("test_vit", agc=0.1), {}, "--model.agc"),
        (ClassificationTask("test_vit", l2_penalty=0.1), {}, "--model.l2_penalty"),
        (ClassificationTask("test_vit", channels_last=True), {}, "--model.channels_last"),
        (ClassificationTask("terminator_pico"), {}, "the auxiliary loss of terminator_pico"),
        (ClassificationTask("iso_nano_routing"), {}, "the auxiliary loss of iso_nano_routing"),
        (ClassificationTask("test_vit"), {"tensor_parallel": 2}, "tensor parallelism"),
        (ClassificationTask("test_vit"), {"callbacks": (EMAWeightAveraging(),)}, "--ema"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fsdp2_refuses_options_that_it_cannot_combine(task: Any, more: dict[str, Any], message: str) -> None:
    strategy = StrategyRegistry.get("fsdp2")
    assert isinstance(strategy, ModelParallelStrategy)
    with pytest.raises(ValueError, match=f"{message} does not go with FSDP2: use --trainer.strategy ddp"):
        configure(task, strategy, **more)


def test_compiled_model_keeps_the_names_of_its_weights() -> None:
    plain, compiled = ClassificationTask("test_vit"), ClassificationTask("test_vit", compile=True)
    for task in (plain, compiled):
        configure(task)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert compiled.model is not None
    assert compiled.model._compiled_call_impl is not None
    assert compiled._compiled_call_impl is None


def test_activations_are_recomputed() -> None:
    task = ClassificationTask("test_vit", model_kwargs={"img_size": 32}, grad_checkpointing=True)
    configure(task)
    model: Any = task.model
    calls = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(None))
    task(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(calls) == 2
    calls.clear()
    encode_visible(model, torch.randn(2, 3, 32, 32), torch.zeros(2, 1, dtype=torch.long)).sum().backward()
    assert len(calls) == 2


def test_models_that_cannot_recompute_are_named() -> None:
    task = ClassificationTask("inception_v3", grad_checkpointing=True)
    with pytest.raises(ValueError, match=r"inception_v3 cannot .*leave out --model.grad_checkpointing"):
        configure(task)


@pytest.mark.parametrize("page", ["scale_out.md", "recipes/torchrun.sh", "recipes/slurm.sbatch"])
def test_commands_behind_launchers_parse(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ")
    text = text.replace('"$GPUS"', "8").replace('"$NODES"', "2")
    commands = re.findall(r"^(?:torchrun|srun|python) .*?(train\.py .*|-m visionattn .*)$", text, flags=re.MULTILINE)
    assert commands
    for command in commands:
        parse(["python", *shlex.split(command)], monkeypatch)
