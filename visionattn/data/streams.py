"""Requirements of data sets that are read in order: WebDataset shards and Hugging Face streams."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.data.dataset import IterableImageDataset

from visionattn.data.errors import DataError
from visionattn.words import counted


def check_package(name: str) -> None:
    """Check for the package that a data set of timm needs, before timm prints its own advice.

    Raises:
        DataError: it is not installed.
    """
    package = {"wds": "webdataset", "hfds": "datasets", "hfids": "datasets"}.get(_kind(name))
    if package and find_spec(package) is None:
        raise DataError(
            f'--data.name {name} needs {package}, which is not installed: pip install "visionattn[streaming]"'
        )


def check_shards(name: str, dataset: IterableImageDataset) -> None:
    """Check for the shards of a WebDataset in a local folder; timm would ignore missing ones.

    Raises:
        DataError: a shard is missing.
    """
    reader: Any = dataset.reader
    if _kind(name) != "wds" or not Path(reader.root).is_dir():
        return
    names = reader.split_info.filenames
    missing = [shard for shard in names if "://" not in shard and not (Path(reader.root) / shard).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} shards are not in --data.root {reader.root}, first {missing[0]}"
        )


def stream_workers(name: str, dataset: IterableImageDataset, wanted: int, world: int) -> int:
    """Return the number of training workers of a process, each of which needs a shard of its own.

    Args:
        name: name of the data set, for messages.
        dataset: data set of timm.
        wanted: largest number of workers.
        world: number of processes.

    Raises:
        DataError: fewer shards than processes.
    """
    reader: Any = dataset.reader
    if _kind(name) == "wds":
        shards = len(reader.split_info.filenames)
        if shards < world:
            raise DataError(
                f"data set {name!r} has {shards} shards to train on, too few for {world} processes: write more of them"
            )
        each = shards // world
    elif _kind(name) == "hfids" and not reader.download:
        shards = int(reader.builder.as_streaming_dataset(split=reader.split).num_shards)
        # Of shards that cannot be divided evenly, each process reads all and keeps its images.
        each = shards if shards % world else shards // world
    else:  # divided again among all workers
        return wanted
    if each < wanted:
        processes = f" for {world} processes" if world > 1 else ""
        rank_zero_warn(
            f"data set {name!r} has {counted(shards, 'shard')}{processes}: {counted(each, 'loader worker')} each, not "
            f"{wanted}"
        )
    return min(wanted, each)


def _kind(name: str) -> str:
    return name.partition("/")[0].lower()
