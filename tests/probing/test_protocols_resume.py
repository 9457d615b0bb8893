"""A training killed at any moment resumes and ends with the same numbers, bit by bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import KILLED, kill_this_process, run_in_child
from visionattn.probing.features.sources import TensorFeatures
from visionattn.probing.protocols import Candidate, HeadResult, Recipe, sweep, train_heads
from visionattn.probing.protocols.state import load_state, save_state

STEPS, RECIPE = 4, Recipe(epochs=8, batch_size=16, patience=5, race=True)
CANDIDATES = [
    *sweep(["ep_2", ("aim", {"num_heads": 2}), "abmilp"], (1e-3, 1e-1), weight_decay=0.05),
    Candidate("ep_2", 1.0, optimizer="lars"),
]


def make_features(count: int, seed: int) -> TensorFeatures:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(99))
    targets = torch.arange(count) % 3
    return TensorFeatures(torch.randn(count, 4, 8, generator=generator) + 0.4 * directions[targets], targets)


def train(state_file: str | Path | None = None, kill_at: int | None = None) -> list[HeadResult]:
    """Train, and kill the process after a step."""

    def progress(done: int, total: int) -> None:
        if done == kill_at:
            kill_this_process()

    return train_heads(
        make_features(69, 0), make_features(40, 1), CANDIDATES, 3, RECIPE, state_file=state_file, progress=progress
    )


def numbers(results: list[HeadResult]) -> list[object]:
    """Return the results of a training, without its duration."""
    return [
        (result.to_dict() | {"seconds": 0}, {name: value.tolist() for name, value in result.head.state_dict().items()})
        for result in results
        if result.head is not None
    ]


def test_killed_training_ends_with_the_same_numbers(tmp_path):
    expected = numbers(train())
    state_file, module = tmp_path / "state.pt", "tests.probing.test_protocols_resume"
    # In the third epoch, while its state is written, and in the sixth.
    moments = [str(2 * STEPS + 3), "writing", str(5 * STEPS + 1)]
    command = [sys.executable, "-m", module, str(state_file), str(torch.get_num_threads()), *moments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2", "5"], "epochs of which there was a state after each kill"
    assert numbers(train(state_file)) == expected
    assert numbers(train(state_file)) == expected, "what is finished is not trained again"
    assert torch.load(state_file, weights_only=True).keys() == {"checksum", "state"}


def test_stopped_trials_stay_stopped(tmp_path):
    train(tmp_path / "state.pt")
    runs = load_state(tmp_path / "state.pt")["runs"]
    assert any(run["stopped"] for run in runs)
    assert len({len(run["losses"]) for run in runs}) > 1


@pytest.fixture(scope="module")
def state_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "state.pt"
    train_heads(make_features(69, 0), make_features(40, 1), CANDIDATES[:1], 3, Recipe(2, 16), state_file=path)
    return path


def load_or_complain(path: Path) -> str:
    try:
        return str(load_state(path))
    except ValueError as error:
        return str(error)


def test_damaged_state_is_refused(state_file, tmp_path):
    content, damaged = state_file.read_bytes(), tmp_path / "damaged.pt"
    fault = f"{damaged} is damaged or no state of a training; delete it to start again"
    found = []
    for place in range(64, len(content), len(content) // 50):
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        found.append(load_or_complain(damaged))
    assert set(found) <= {fault, load_or_complain(state_file)}, "nothing wrong is used; on some bytes nothing depends"
    assert found.count(fault) > 40
    damaged.write_bytes(content[:1000])
    with pytest.raises(ValueError, match=r"damaged\.pt is damaged"):
        load_state(damaged)


@pytest.mark.parametrize(
    ("candidates", "recipe", "identity", "differing"),
    [
        (CANDIDATES[:2], Recipe(2, 16), "", "candidates"),
        (CANDIDATES[:1], Recipe(3, 16), "", "recipe"),
        (CANDIDATES[:1], Recipe(2, 16), "another cache", "features"),
    ],
)
def test_state_of_another_training_is_refused(state_file, candidates, recipe, identity, differing):
    sources = make_features(69, 0), make_features(40, 1)
    with pytest.raises(ValueError, match=f"is the state of a training with other {differing}; name another file"):
        train_heads(*sources, candidates, 3, recipe, state_file=state_file, identity=identity)


def test_failed_write_keeps_the_last_state(tmp_path, monkeypatch):
    save_state(tmp_path / "state.pt", {"epoch": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write [\d,]+ bytes to .*state.pt: No space left on device; make room"):
        save_state(tmp_path / "state.pt", {"epoch": 2})
    assert load_state(tmp_path / "state.pt") == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def train_until(moment: str, state_file: str) -> None:
    """Train until a step, or until the state is written, and kill the process there."""
    if moment == "writing":
        os.fsync = lambda descriptor: kill_this_process()
    train(state_file, None if moment == "writing" else int(moment))


def main(state_file: str, threads: str, *moments: str) -> None:
    """Train in one process after another, each killed at its moment, and print the last epoch of each state."""
    torch.set_num_threads(int(threads))
    for moment in moments:
        assert run_in_child(lambda: train_until(moment, state_file)) == KILLED  # noqa: B023  it is called here
        state = load_state(state_file)
        assert state is not None
        print(state["epoch"])


if __name__ == "__main__":
    main(*sys.argv[1:])
