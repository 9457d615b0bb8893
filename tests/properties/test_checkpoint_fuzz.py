"""Damaged and altered checkpoints load or end with one line of error, and run no code."""

import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from visionattn.cli.errors import DEBUG_HINT, describe
from visionattn.training import ModelSpec, load_checkpoint

MODEL = "test_resnet"
ODD: tuple[Any, ...] = (None, -1, 0, 7, 0.5, "", "x", "no/such", [], [1, None], {}, {"a": 1}, True, torch.zeros(2))


def flip(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 4, 200))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def flip_at_the_ends(content: bytearray, rng: random.Random) -> None:
    """Flip bits at both ends, where headers and tables of contents are."""
    for _ in range(rng.choice((1, 4, 20))):
        content[rng.choice((1, -1)) * rng.randrange(1, min(4000, len(content)))] ^= 1 << rng.randrange(8)


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.choice((rng.randrange(len(content)), rng.randrange(200), -1 - rng.randrange(300))) :]


def splice(content: bytearray, rng: random.Random) -> None:
    start, to = rng.randrange(len(content)), rng.randrange(len(content))
    part = content[start : start + rng.choice((1, 100, 5000))]
    content[to : to + rng.choice((0, len(part)))] = part


def change(content: Any, rng: random.Random, deep: int = 0) -> Any:
    """Remove, retype or rename some value of a checkpoint."""
    if not isinstance(content, dict) or not content or (deep and rng.random() < 0.2):
        return rng.choice(ODD)
    key = rng.choice(list(content))
    how = rng.choice(("drop", "rename", "deeper", "deeper", "deeper"))
    rest = {name: value for name, value in content.items() if name != key}
    if how == "drop":
        return rest
    if how == "rename":
        return {**rest, rng.choice((f"{key}x", f"module.{key}", "", 3)): content[key]}
    return {**content, key: change(content[key], rng, deep + 1)}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, classifier: nn.Module) -> dict[str, Path]:
    """Write the same weights in each format that is read."""
    folder, state = tmp_path_factory.mktemp("whole"), classifier.state_dict()
    preprocessing = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    preprocessing |= {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    spec = ModelSpec(MODEL, {}, 3, ["a", "b", "c"], preprocessing, "folder")
    checkpoint = {
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "visionattn": spec.to_dict(),
        "global_step": 5,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
    }
    files = {name: folder / name for name in ("zip.ckpt", "legacy.ckpt", "plain.safetensors")}
    torch.save(checkpoint, files["zip.ckpt"])
    torch.save(checkpoint, files["legacy.ckpt"], _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, files["plain.safetensors"])
    return files


def few_and_many(few: int, many: int) -> Any:
    seeds = [pytest.param(range(few), id="few"), pytest.param(range(few, many), id="many", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("seeds", seeds)


def loads_or_says_why(path: Path, told: str) -> bool:
    """Return whether a file loads; check that any exception is meant for users."""
    options = {"model_name": MODEL} if path.suffix == ".safetensors" else {}
    try:
        model, spec = load_checkpoint(path, **options)
    except (ValueError, OSError) as error:
        line = describe(error)
        assert "\n" not in line, told
        assert DEBUG_HINT not in line, f"nobody foresaw this: {told}: {line}"
        assert path.name in line or "model" in line, f"{told}: {line}"
        return False
    assert isinstance(model, nn.Module)
    assert not model.training
    assert model.num_classes == spec.num_classes
    return True


@few_and_many(6, 200)
@pytest.mark.parametrize("damage", [flip, flip_at_the_ends, truncate, splice])
@pytest.mark.parametrize("name", ["zip.ckpt", "legacy.ckpt", "plain.safetensors"])
def test_checkpoint_with_damaged_bytes_loads_or_is_an_error(
    name: str,
    damage: Callable[[bytearray, random.Random], None],
    seeds: range,
    originals: dict[str, Path],
    tmp_path: Path,
) -> None:
    whole = originals[name].read_bytes()
    assert loads_or_says_why(originals[name], name)
    for seed in seeds:
        content = bytearray(whole)
        damage(content, random.Random(f"{name} {seed}"))
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(content)
        loads_or_says_why(path, f"{damage.__name__} {seed} of {name}")
        path.unlink()


@few_and_many(40, 1500)
def test_checkpoint_with_changed_content_loads_or_is_an_error(
    seeds: range, originals: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = torch.load(originals["zip.ckpt"], weights_only=True)
    outcomes = set()
    for seed in seeds:
        path = tmp_path / f"{seed}.ckpt"
        torch.save(change(checkpoint, random.Random(seed)), path)
        outcomes.add(loads_or_says_why(path, f"content {seed}"))
        path.unlink()
    assert outcomes == {True, False}, "some of it does not matter, some does"


class Trap:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "sprung")


def traps(path: Path, folder: Path) -> Iterator[Path]:
    """Write files that run code if they are unpickled, in each format that is read."""
    plain = folder / "plain.ckpt"
    plain.write_bytes(pickle.dumps(Trap(path)))
    yield plain
    for zipped in (True, False):
        file = folder / f"torch-{zipped}.pth"
        torch.save(
            {"state_dict": {"model.x": torch.zeros(1)}, "x": Trap(path)}, file, _use_new_zipfile_serialization=zipped
        )
        yield file
    within = folder / "within.ckpt"
    with zipfile.ZipFile(within, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(path)))
        archive.writestr("archive/version", "3\n")
    yield within
    for suffix in (".safetensors", ".pth.tar"):
        renamed = folder / f"renamed{suffix}"
        renamed.write_bytes(pickle.dumps(Trap(path)))
        yield renamed


def test_pickled_code_is_refused_and_never_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    files = list(traps(sprung, tmp_path))
    for path in files:
        with pytest.raises(ValueError, match=path.name):
            load_checkpoint(path, model_name=MODEL)
    assert not sprung.exists()
    pickle.loads(files[0].read_bytes())
    assert sprung.exists(), "the trap is a real one"
