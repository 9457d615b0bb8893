"""Options that are lists: values separated by commas, lists of YAML, single values."""

from typing import Any

import pytest
from jsonargparse import ArgumentParser

from visionattn.cli.lists import accept_commas


@pytest.mark.parametrize(
    ("kind", "text", "values"),
    [
        (list[str], "nat_tiny, dinat_*,nat_tiny", ["nat_tiny", "dinat_*"]),
        (list[float] | None, "[0.5, 0.5, 0.5]", [0.5, 0.5, 0.5]),
        (list[float], "0.5,0.5", [0.5, 0.5]),
        (list[int], "3", [3]),
    ],
    ids=["words count once", "equal numbers of a list", "equal numbers between commas", "single value"],
)
def test_list_option_takes_commas_and_lists(kind: Any, text: str, values: list[Any]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    accept_commas(parser.add_argument("--values", type=kind))
    assert parser.parse_args([f"--values={text}"])["values"] == values
