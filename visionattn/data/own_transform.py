"""Transforms of users, by import path."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor

from visionattn.data.errors import DataError
from visionattn.data.images import image_mode
from visionattn.data.sampling import generators_kept

KEY = "own_transform"
"""Key of the path in a preprocessing; it differs from the option, which only users set: no file decides imports."""


class OwnTransform:
    """Transform that the user names, with checks of what it returns.

    Args:
        option: name of the option, for messages.
        path: import path of a function or class, which is called as ``make(preprocessing, training)`` and returns the
            transform, or of any other object, which is the transform itself.
        preprocessing: ``input_size`` (C, H, W), ``mean``, ``std``, ….
        training: whether it is for training images.

    Raises:
        DataError: it cannot be imported or made, or does not do what it should with a blank image.
    """

    def __init__(self, option: str, path: str, preprocessing: Mapping[str, Any], training: bool) -> None:
        self.arguments = (option, path, preprocessing, training)
        self.name, self.shape = f"--data.{option} {path}", tuple(preprocessing["input_size"])
        found: Any = self._find(path)
        if isinstance(found, type) or inspect.isroutine(found):
            try:
                found = found(dict(preprocessing), training)
            except Exception as error:
                raise DataError(f"{self.name}(preprocessing, {training}) raises {_described(error)}") from error
        if not callable(found):
            raise DataError(f"{self.name} is of type {type(found).__name__}, which cannot be called with an image")
        self.transform = found
        try:
            with generators_kept():
                self(_blank(self.shape))
        except ValueError as error:
            raise DataError(str(error)) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers that are not forked make it again, as functions within functions cannot be sent to them.
        return OwnTransform, self.arguments

    def __call__(self, image: Any) -> Tensor:
        """Return a tensor of bytes or normalised floats.

        Raises:
            ValueError: it raises an error, or returns something else.
        """
        try:
            found = self.transform(image)
        except Exception as error:
            raise ValueError(f"{self.name} raises {_described(error)}") from error
        if not isinstance(found, Tensor) or found.dtype not in (torch.uint8, torch.float32):
            kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
            raise ValueError(f"{self.name} returns {kind}, not a tensor of uint8, or of normalised float32")
        if tuple(found.shape) != self.shape:
            raise ValueError(
                f"{self.name} returns a tensor {list(found.shape)}, not {list(self.shape)}: resize to "
                "preprocessing['input_size'], or pass --data.img_size"
            )
        return found

    def _find(self, path: str) -> Any:
        module, _, name = path.rpartition(".")
        if not module:
            raise DataError(f"{self.name} is no import path: write MODULE.NAME")
        try:
            home = import_module(module)
        except Exception as error:  # of whatever the module does
            raise DataError(
                f"{self.name} cannot be imported: {_described(error)}; set PYTHONPATH to the folder of {module}"
            ) from error
        if not hasattr(home, name):
            raise DataError(f"{self.name}: there is no {name} in {home.__file__}")
        return getattr(home, name)


def warn_of_own_transform(preprocessing: Mapping[str, Any], given: str | None) -> None:
    """Warn that images of a model were prepared by a user's transform, unless one is given."""
    if (path := preprocessing.get(KEY)) and given is None:
        rank_zero_warn(
            f"the model was trained with its own transform {path}, which is not imported unless you ask for it: images "
            f"are prepared without it (fit, classify and train predict take --data.transform {path})"
        )


def _blank(shape: tuple[int, ...]) -> Any:
    channels, height, width = shape
    mode = image_mode(channels)
    size = (2 * width, 2 * height + 1)
    return Image.new(mode, size) if isinstance(mode, str) else np.zeros((channels, *size[::-1]), np.uint8)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
