"""Commands that read the labels of a table."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from visionattn.cli import evaluate, train
from visionattn.cli.errors import run

Commands = Callable[..., str]
QUICK = ("--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    """Return a function that runs a command in the test's folder, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    def call(*argv: str) -> str:
        capsys.readouterr()
        assert run(train.main if argv[0] in ("fit", "validate", "test") else evaluate.main, list(argv)) == 0
        return capsys.readouterr().out

    return call


def test_table_is_trained_on_and_evaluated(colour_folder: Path, command: Commands) -> None:
    """The columns of 0 and 1 are read as one label; the printed command evaluates on the held-out images."""
    paths = sorted((colour_folder / "train").rglob("*.jpg"))
    names = sorted({path.parent.name for path in paths})
    rows = [[path.name, *(str(int(path.parent.name == name)) for name in names)] for path in paths]
    for path, row in zip(paths, rows, strict=True):
        row[:1] = [path.relative_to(colour_folder).as_posix(), "a note"]
    lines = ["\t".join(row) for row in (["image", "note", *names], *rows)]
    Path("labels.tsv").write_text("\n".join(lines))
    read = [f"--data.label_column=[{', '.join(names)}]", "--data.multi_label=false", f"--data.root={colour_folder}"]
    read += ["--data.labels=labels.tsv", "--data.val_share=0.5"]
    model = ("--model.name=test_resnet", "--data.img_size=32", "--trainer.max_epochs=1", "--data.batch_size=3")
    out = command("fit", *read, *model, *QUICK, "--data.balance=sampler", "--run_name=t")
    assert "on labels.tsv: 6 train, 6 validation images of 3 classes" in out
    printed = next(line for line in out.splitlines() if line.startswith("evaluate:"))
    assert "│      6 │" in command(*shlex.split(printed)[3:], "--data.num_workers=0")
    for name in ("validate", "test"):
        assert "top1" in command(name, *read, *QUICK, "--ckpt_path=runs/t/0/checkpoints/last.ckpt")
