"""Slightly wrong config files, and random bytes, are accepted or end with one line and a status."""

import random
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import yaml

from visionattn.cli import binding, evaluate, train, training
from visionattn.cli.errors import DEBUG_HINT, run

CONFIGS = sorted(path for path in (Path(__file__).parents[2] / "configs").rglob("*.yaml") if path.parent.name != "base")

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        3,
        10**30,
        0.5,
        -1e-3,
        float("nan"),
        float("inf"),
        "",
        "x",
        "1",
        "1e-3",
        "null",
        "é\u2028\x07",
    ),
    *([], [1, "a", None], [[]], {}, {"x": {"y": 1}}, {1: 2}, {"class_path": "os.system"}, {"class_path": "no.such"}),
    *("../..", "${HOME}", "a: b", "- x", "@file", "%d", "{", "cpu", "auto", "nat_pico", "folder", "digits"),
)


def places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the keys or indices that lead to each value."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*above, key)
        yield from places(node[key], (*above, key))


def misspell(word: str, rng: random.Random) -> str:
    at = rng.randrange(len(word) + 1)
    return word[:at] + rng.choice("_-. aZ0\t:é") + word[at + rng.randrange(2) :]


def change(tree: Any, rng: random.Random) -> None:
    """Make one change: drop, rename or move a key, or change the type of a value."""
    *above, key = rng.choice(list(places(tree)))
    holder = tree
    for step in above:
        holder = holder[step]
    how = rng.choice(("drop", "rename", "move", "odd", "odd", "wrap"))
    if how == "drop":
        del holder[key]
    elif how == "rename" and isinstance(holder, dict):
        holder[misspell(str(key), rng)] = holder.pop(key)
    elif how == "move":
        tree[str(key)] = holder.pop(key)
    elif how == "wrap":
        holder[key] = rng.choice(([holder[key]], {str(key): holder[key]}, str(holder[key])))
    else:
        holder[key] = rng.choice(ODD)


def mutate(text: str, rng: random.Random) -> bytes:
    """Return a changed copy of a config."""
    tree = yaml.safe_load(text)
    how = rng.choice(("tree", "tree", "tree", "lines", "bytes"))
    if how == "tree":
        for _ in range(rng.choice((1, 1, 2, 4))):
            if tree:
                change(tree, rng)
        return yaml.safe_dump(tree, sort_keys=False).encode()
    lines = yaml.safe_dump(tree, sort_keys=False).splitlines()
    if how == "lines":
        at = rng.randrange(len(lines))
        lines.insert(rng.randrange(len(lines)), rng.choice(("", " ", "\t", "- ")) + lines[at])
        return "\n".join(lines).encode()
    content = bytearray("\n".join(lines).encode())
    for _ in range(rng.choice((1, 3, 30))):
        at = rng.randrange(len(content))
        content[at : at + rng.choice((0, 1, 9))] = rng.randbytes(rng.choice((0, 1, 5)))
    return bytes(content)


FEW = random.Random(0).sample(CONFIGS, 12)


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands parse and create models, data and trainers, but train and evaluate nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # to be as it was afterwards
    monkeypatch.setattr(training.TrainingCLI, "_run_subcommand", lambda self, subcommand: None)

    @wraps(binding.binding)
    def measure(*args: Any, **kwargs: Any) -> None: ...

    monkeypatch.setattr(binding, "binding", measure)


@pytest.mark.parametrize(
    ("config", "seeds"),
    [
        *(pytest.param(config, range(1), id=f"{config.stem}-few") for config in FEW),
        *(pytest.param(config, range(1, 21), id=f"{config.stem}-many", marks=pytest.mark.slow) for config in CONFIGS),
    ],
)
def test_wrong_config_ends_with_one_line(
    config: Path, seeds: range, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, file = config.read_text(), tmp_path / "config.yaml"
    evaluates = config.parent.name == "evaluation"
    for seed in seeds:
        content = mutate(text, random.Random(f"{config.stem} {seed}"))
        file.write_bytes(content)
        if evaluates:
            status = run(evaluate.main, ["binding", f"--config={file}"])
        else:
            status = run(train.main, ["fit", f"--config={file}", "--trainer.accelerator=cpu"])
        out, err = capsys.readouterr()
        told = f"seed {seed}: {content!r}\n{out}{err}"
        assert status in (0, 1, 2), told
        assert err.count("\n") == (status != 0), told
        assert "Traceback" not in out + err, told
        assert DEBUG_HINT not in err, f"nobody foresaw this: {told}"
