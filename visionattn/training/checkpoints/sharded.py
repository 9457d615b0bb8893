"""Models divided among several devices (FSDP2), as two more values of ``--trainer.strategy``.

``fsdp2`` writes checkpoints of one file, like all other strategies. ``fsdp2_sharded`` writes folders; every process
adds its part.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from visionattn.training.checkpoints.callbacks import read_training
from visionattn.training.checkpoints.files import is_sharded

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
FORWARD_METHODS = ("forward_parts", "forward_selected")
"""Methods of DCAL's blocks that are called in place of `forward`, with the block's parameters gathered."""


class FullyShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over all devices, with atomic checkpoints.

    Args:
        save_distributed_checkpoint: write folders with a part of each process instead of single files.
    """

    def __init__(self, save_distributed_checkpoint: bool = False) -> None:
        # No model has a plan for tensor parallelism, which Lightning would choose on one node.
        self.sharded = save_distributed_checkpoint
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)

    def setup_environment(self) -> None:
        """Make a mesh of all devices."""
        # The argument of __init__ has to be known before the processes are; "auto" would divide within nodes only.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write beside the old checkpoint, then replace it."""
        path = Path(filepath)
        path, at_once = self.broadcast((path, not (self.sharded or path.is_dir())))
        if at_once:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        fresh, old = (path.with_name(path.name + suffix) for suffix in (".new", ".old"))
        if self.is_global_zero:
            _remove(fresh)
            _remove(old)
        self.barrier()
        super().save_checkpoint(checkpoint, fresh, storage_options)
        self.barrier()
        if not self.is_global_zero:
            return
        if path.exists():
            path.replace(old)  # a folder cannot be replaced in one step
        fresh.replace(path)
        _remove(old)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a sharded checkpoint, or a single file of any strategy, on any number of devices."""
        path, module = Path(checkpoint_path), self.lightning_module
        assert module is not None
        checkpoint = read_training(path, shards=True)
        module.on_load_checkpoint(checkpoint)  # compares architectures: a list of keys would be a longer message
        if is_sharded(path):
            return super().load_checkpoint(checkpoint_path, weights_only)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(module, checkpoint["state_dict"], options=options)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            named = _renamed(state, dict(enumerate(self._names(optimizer))))
            set_optimizer_state_dict(module, optimizer, named, options=options)
        return checkpoint

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the whole state on the first process, as other strategies do; or the part of this process.

        Lightning numbers parameters in the model's order. An optimizer numbers them in the order of its groups, and so
        would any other strategy that resumes from the file.
        """
        if self.sharded:
            return super().optimizer_state(optimizer)
        module = self.lightning_module
        assert module is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(module, optimizer, options=options)
        numbers = {name: number for number, name in enumerate(self._names(optimizer))}
        return _renamed(state, numbers) if self.is_global_zero else {}

    def _names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Return the names of the parameters, in the optimizer's order."""
        assert self.lightning_module is not None
        names = {parameter: name for name, parameter in self.lightning_module.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an optimizer's state with other names or numbers for its parameters."""
    groups = [{**group, "params": [names[old] for old in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[old]: values for old, values in state["state"].items()}, "param_groups": groups}


for name, sharded in (("fsdp2", False), ("fsdp2_sharded", True)):
    StrategyRegistry.register(
        name, FullyShardedStrategy, description="FSDP2", override=True, save_distributed_checkpoint=sharded
    )


def _remove(path: Path) -> None:
    """Remove a checkpoint of either kind, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def shard_model(model: nn.Module, mesh: DeviceMesh, compile: bool = False) -> None:
    """Divide every parameter among the devices of a mesh of one axis; a block is gathered while it computes.

    All processes must have the same weights. ``compile`` compiles each block separately.

    Raises:
        ValueError: the model has batch norms or parameters that cannot be divided, or weights were drawn without a
            seed.
    """
    if any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        wrong = "the statistics of batch norms would differ from process to process"
        raise ValueError(f"{wrong}: train this model with --trainer.strategy ddp")
    scalars = [name for name, parameter in model.named_parameters() if not parameter.ndim]
    if scalars:
        raise ValueError(f"{scalars[0]} is a single number, which FSDP2 cannot divide: use --trainer.strategy ddp")
    if "PL_GLOBAL_SEED" not in os.environ:
        raise ValueError("FSDP2 wants the same initial weights in all processes: leave --seed_everything on")
    for block in (*repeated_blocks(model), model):
        if compile and block is not model:
            block.compile()
        fully_shard(block, mesh=mesh)
        for method in FORWARD_METHODS:
            if hasattr(block, method):
                register_fsdp_forward_method(block, method)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that a model is a sequence of: the innermost elements of lists that are not layers."""
    found = []
    for child in model.children():
        if inner := repeated_blocks(child):
            found += inner
        elif isinstance(model, nn.Sequential | nn.ModuleList) and _has(child.children()) and _has(child.parameters()):
            found.append(child)
    return found


def _has(items: Iterator[Any]) -> bool:
    return next(items, None) is not None
