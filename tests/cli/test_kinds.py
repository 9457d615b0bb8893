"""--task, before there is a parser."""

from pathlib import Path

import pytest

from visionattn.cli.errors import UsageError, run
from visionattn.cli.kinds import find_task
from visionattn.cli.train import main


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "fine.yaml": "task: fine_grained\nmodel:\n  name: test_vit\n",
        "plain.yaml": "model:\n  name: test_vit\n",
        "whole.yaml": "fit:\n  task: fine_grained\n",
        "broken.yaml": "task: [fine_grained\n",
        "list.yaml": "- task\n",
    }.items():
        Path(name).write_text(text)


@pytest.mark.parametrize(
    ("argv", "task"),
    [
        (["fit"], "classification"),
        (["fit", "--task", "reid"], "reid"),
        (["fit", "--task=mae"], "mae"),
        (["fit", "--task=fine_grained"], "fine_grained"),
        (["fit", "--config", "fine.yaml"], "fine_grained"),
        (["fit", "-c", "fine.yaml", "--config=plain.yaml"], "fine_grained"),
        (["--config=whole.yaml", "fit"], "fine_grained"),
        # The last one counts, as for all options.
        (["fit", "--config", "fine.yaml", "--task", "reid"], "reid"),
        (["fit", "--task", "reid", "--config", "fine.yaml"], "fine_grained"),
        # What is wrong with these is told later.
        (["fit", "--config", "absent.yaml"], "classification"),
        (["fit", "--config", "broken.yaml"], "classification"),
        (["fit", "--config", "list.yaml"], "classification"),
        (["fit", "--config"], "classification"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_last_one_named_is_taken(argv: list[str], task: str) -> None:
    assert find_task(argv) == task


@pytest.mark.parametrize("argv", [["fit", "--task", "detection"], ["fit", "--task"]], ids=" ".join)
def test_an_unknown_task(argv: list[str]) -> None:
    with pytest.raises(
        UsageError, match=r"unknown --task '\w*': choose one of classification, fine_grained, reid, mae, object_d"
    ):
        find_task(argv)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["fit", "--task", "detection"], "unknown --task 'detection'"),
        (["fit", "--data.instances=4"], "(options of --task classification; there are also fine_grained, reid, mae, "),
        (["fit", "--task=reid", "--model.mixup=1"], "options of --task reid; there are also classification, fine_"),
        (["fit", "--config=broken.yaml"], "broken.yaml, line 2: expected ',' or ']'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_tell_of_it(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--help"], "--task (classification, fine_grained, reid, mae, object_discovery)"),
        (["fit", "--help"], "--task {classification,fine_grained,reid,mae,object_discovery}"),
        (["fit", "--task=reid", "--help"], "--data.instances"),
        (["fit", "--task=mae", "--help"], "--model.mask_ratio"),
        (["fit", "--task=object_discovery", "--help"], "--model.num_slots"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_tells_of_it(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, argv) == 0
    assert says in " ".join(capsys.readouterr().out.split())
