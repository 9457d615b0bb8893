"""The end of commands: one line, an exit status, and a traceback only on request."""

import subprocess
import sys
import warnings

import pytest
from jsonargparse import ArgumentParser, auto_cli
from torch.utils.data import DataLoader

from visionattn.cli.errors import UsageError, describe, one_line, run
from visionattn.cli.parsing import ConciseParser
from visionattn.training import load_checkpoint


def fails_with(error):
    def main(argv):
        raise error

    return main


def test_command_gets_words_without_debug_and_ends_with_zero(capsys):
    seen = []
    assert run(seen.extend, ["classify", "--debug", "--per-class=a-b.csv", "--img-size", "3-2", "-x"]) == 0
    assert seen == ["classify", "--per_class=a-b.csv", "--img_size", "3-2", "-x"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("no such option"), 2, "error: no such option"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (SystemExit("two\nlines"), 1, "error: two lines"),
        (IndexError("list index"), 1, "error: IndexError: list index (run again with --debug for the traceback)"),
        (RuntimeError("first\n\n  second"), 1, "error: RuntimeError: first second (run again with --debug for the tra"),
        (AssertionError(), 1, "error: AssertionError (run again with --debug for the traceback)"),
        (FileNotFoundError(2, "No such file or directory", "a.yaml"), 1, "error: a.yaml: No such file or directory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_is_one_line_and_a_status(capsys, error, status, line):
    assert run(fails_with(error), []) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


def test_help_keeps_its_status(capsys):
    assert run(fails_with(SystemExit(0)), []) == 0
    assert capsys.readouterr().err == ""


def test_debug_shows_the_traceback_before_the_line(capsys):
    assert run(fails_with(IndexError("list index")), ["--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("error: IndexError: list index")


def test_interrupt_turned_into_an_exit_by_lightning_has_status_130(capsys):
    def main(argv):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert run(main, []) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_own_error_is_its_message_and_library_error_has_its_type(tmp_path):
    with pytest.raises(FileNotFoundError) as ours:
        load_checkpoint(tmp_path / "gone.ckpt")
    assert describe(ours.value) == f"no checkpoint at {tmp_path / 'gone.ckpt'}"
    with pytest.raises(ValueError, match="invalid literal") as theirs:
        int("x")
    assert describe(theirs.value).startswith("ValueError: invalid literal")


class Broken:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return load_checkpoint("gone.ckpt")


def test_error_in_a_loader_worker_has_no_traceback():
    with pytest.raises(FileNotFoundError) as error:
        list(DataLoader(Broken(), num_workers=1))
    assert "Traceback" in str(error.value)
    assert describe(error.value) == "no checkpoint at gone.ckpt"


def test_warning_is_one_line_without_its_place(capsys):
    def main(argv):
        # pytest captures warnings; their format is what is tested.
        sys.stderr.write(warnings.formatwarning(UserWarning("two\nlines"), UserWarning, __file__, 3))

    assert run(main, []) == 0
    assert capsys.readouterr().err == "warning: two lines\n"
    assert run(main, ["--debug"]) == 0
    assert __file__ in capsys.readouterr().err


def test_one_line_drops_blank_lines_and_indentation():
    assert one_line("a:\n\n   b\n c") == "a: b c"
    assert one_line("plain") == "plain"


class Parser(ConciseParser, ArgumentParser):
    pass


def train(root: str, epochs: int = 3, pretrained: bool = False):
    print(root, epochs, pretrained)


def evaluate(checkpoint: str = "best"):
    pass


def main(argv):
    auto_cli([train, evaluate], args=argv, as_positional=False, parser_class=Parser)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["train", "--rot", "a"], "unknown option --rot; did you mean --root?"),
        (["train", "--root", "a", "stray"], "unexpected argument 'stray'"),
        (["trainx"], "unknown command 'trainx'; did you mean train?"),
        (["zzz"], "unknown command 'zzz'; choose from 'train', 'evaluate'"),
        ([], "a command is wanted: train, evaluate"),
        (["train"], "missing: --root"),
        (["train", "--root", "a", "--epochs", "many"], "--epochs: expected int. Got value: many"),
        (["train", "--config", "gone.yaml"], "no config file gone.yaml: --config takes a file, or a shipped config"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_error_names_the_word_and_near_matches(capsys, argv, line):
    assert run(main, argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {line}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_unknown_config_key_has_near_matches(capsys, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("root: a\nepoch: 4\n")
    assert run(main, ["train", "--config", str(config)]) == 2
    err = capsys.readouterr().err
    assert "epoch" in err
    assert "did you mean epochs?" in err
    assert err.count("\n") == 1


def test_bare_flag_is_true(capsys):
    assert run(main, ["train", "--pretrained", "--root", "a"]) == 0
    assert capsys.readouterr().out == "a 3 True\n"
    assert run(main, ["train", "--root", "a", "--pretrained", "false"]) == 0
    assert capsys.readouterr().out == "a 3 False\n"


def test_command_ends_quietly_when_its_reader_leaves():
    program = (
        "import sys; from visionattn.cli.errors import run\n"
        "sys.exit(run(lambda argv: [print('x' * 1000) for _ in range(1000)]))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.parametrize("hint", [float | int | None, int | float | None])
def test_whole_number_is_an_int_in_a_union(hint):
    """Lightning takes 1 for one batch and 1.0 for all of them."""
    parser = Parser(prog="p")
    parser.add_argument("--batches", type=hint)
    values = [parser.parse_args([f"--batches={text}"]).batches for text in ("1", "1.0", "0.5", "null")]
    assert [(value, type(value)) for value in values] == [(1, int), (1.0, float), (0.5, float), (None, type(None))]
