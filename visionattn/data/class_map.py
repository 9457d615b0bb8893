"""Class maps: folders whose names are not the classes of a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from visionattn.data.errors import DataError

ClassMap = str | dict[str, Any] | None
"""A mapping from folders to classes, its text, a YAML or JSON file with it, or None."""


def read_class_map(given: ClassMap) -> dict[str, str]:
    """Return the class of each folder that a class map names.

    Args:
        given: value of ``--data.class_map``.

    Raises:
        DataError: the file is missing, or is not a mapping from folders to classes.
    """
    if given is None:
        return {}
    content: Any = given
    if isinstance(given, str):
        is_text = given.lstrip().startswith("{")
        try:
            content = yaml.safe_load(given if is_text else Path(given).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or type(error).__name__
            raise DataError(f"--data.class_map: cannot read {given}: {reason}; {EXPECTED}") from error
    if not isinstance(content, Mapping) or not all(isinstance(name, str | int) for name in content.values()):
        raise DataError(f"--data.class_map {given} is no mapping from folders to classes: {EXPECTED}")
    return {str(folder): str(name) for folder, name in content.items()}


EXPECTED = "expected is '{FOLDER: CLASS, ...}', or a YAML or JSON file with that"
