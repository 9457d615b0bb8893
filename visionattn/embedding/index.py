"""Index of a gallery: features of the images of a folder, in a file that is kept up to date."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from visionattn.embedding.embedder import Embedder
from visionattn.embedding.images import States, file_states
from visionattn.errors import UserError
from visionattn.evaluation.source import LoadedModel, ModelSource
from visionattn.output import writing
from visionattn.training.models import is_elsewhere

METADATA = "visionattn index"
"""Key of the description in the metadata of an index, which is a safetensors file."""

COMPARED = {
    "model": "--model",
    "model_kwargs": "--model_kwargs",
    "weights": "--model",
    "layer": "--layer",
    "pooling": "--pooling",
    "preprocessing": "--img_size",
    "precision": "--precision",
}
"""Parts of the description that queries must share with the gallery, and the options that they come from."""


REMOTE = {"url", "hf_hub_id"}
"""Keys of timm's `pretrained_cfg` that say from where weights are fetched."""


class Changes(NamedTuple):
    """Numbers of images by which an update changed an index, and a line for each image that could not be read."""

    new: int
    changed: int
    removed: int
    unreadable: list[str]


class Found(NamedTuple):
    """Features of the files that could be read.

    Attributes:
        numbers: Their numbers among all files.
        features: Their features `[n, D]`.
        states: Their sizes and dates `[n, 2]`.
        num_known: Number of those that the index knew.
        unreadable: A line for each file that could not be read.
    """

    numbers: list[int]
    features: Tensor
    states: States
    num_known: int
    unreadable: list[str]


@dataclass(frozen=True, eq=False)
class Index:
    """Features of the images of a folder.

    Attributes:
        root: The folder.
        names: Paths of the images below it.
        states: Sizes in bytes and dates in ns of the files when they were read, `[N, 2]`.
        features: Vectors of length 1 `[N, D]`, float32.
        about: All that features depend on except the images, as in `Embedder.about`.
    """

    root: Path
    names: list[str]
    states: States
    features: Tensor
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.names)

    def file(self, place: int) -> str:
        """Return the path of an image."""
        return str(self.root / self.names[place])

    def places(self, files: Sequence[str]) -> list[int | None]:
        """Return the place of each file in the index; None for a file that is not there."""
        rows = {name: row for row, name in enumerate(self.names)}
        plain, real = self.root, os.path.realpath(self.root)
        names = [(os.path.relpath(file, plain), os.path.relpath(os.path.realpath(file), real)) for file in files]
        return [next((rows[name] for name in both if name in rows), None) for both in names]

    @classmethod
    def empty(cls, embedder: Embedder) -> "Index":
        """Return an index without images."""
        return cls(Path(), [], np.empty((0, 2), np.int64), torch.empty(0, *embedder.shape), embedder.about)

    def updated(self, embedder: Embedder, gallery: str | Path, folder: Path | None = None) -> tuple["Index", Changes]:
        """Return the index of the images that a folder holds now, and the changes.

        An image is read if its path below the folder is new, or its size or date is another. The folder itself may have
        moved.

        Args:
            embedder: The model of the index.
            gallery: Folder of images at any depth.
            folder: Folder of unfinished work, from which an interrupted update resumes.

        Raises:
            OSError: An image cannot be read and must not be left out, or the disk is full.
            ValueError: The folder holds no images, or none of those in the index.
        """
        root = Path(gallery).expanduser()
        if not root.is_dir():
            raise UserError(f"no such folder of images: {root} (--gallery)")
        files = embedder.list_images(root)
        names = [os.path.relpath(file, root) for file in files]
        rows = {name: row for row, name in enumerate(self.names)}
        places = [rows.get(name) for name in names]
        if rows and all(place is None for place in places):
            raise UserError(
                f"the index is of {self.root}, and {root} has none of its images: name another --index for this gallery"
            )
        found = self.read(embedder, files, places, folder)
        kept = [names[number] for number in found.numbers]
        new = sum(places[number] is None for number in found.numbers)
        changes = Changes(new, len(kept) - new - found.num_known, len(rows.keys() - set(kept)), found.unreadable)
        return Index(root, kept, found.states, found.features, embedder.about), changes

    def read(
        self, embedder: Embedder, files: Sequence[str], places: Sequence[int | None], folder: Path | None = None
    ) -> Found:
        """Return the features of files: from the index if they have not changed, else from the model.

        Args:
            embedder: The model of the index.
            files: The files.
            places: Place of each file in the index; None for a file that is not there.
            folder: As for `updated`.

        Raises:
            OSError: An image cannot be read and must not be left out, or the disk is full.
            ValueError: Not one image can be read.
        """
        states, features = file_states(files), torch.empty(len(files), *embedder.shape)
        known = {
            number: place
            for number, place in enumerate(places)
            if place is not None and np.array_equal(self.states[place], states[number])
        }
        features[[*known.keys()]] = self.features[[*known.values()]]
        wanted = {file: number for number, file in enumerate(files) if number not in known}
        read, unreadable = list[int](), list[str]()
        if wanted:
            with embedder.extract([*wanted], folder, may_be_none=bool(known)) as found:
                read, unreadable = [wanted[file] for file in found.files], found.unreadable
                features[read] = torch.from_numpy(found.array())
        numbers = sorted([*known, *read])
        return Found(numbers, features[numbers], states[numbers], len(known), unreadable)

    def save(self, path: str | Path) -> None:
        """Write the index atomically."""
        names = torch.frombuffer(bytearray(b"\0".join(map(os.fsencode, self.names))), dtype=torch.uint8)
        tensors = {"features": self.features.contiguous(), "states": torch.from_numpy(self.states), "names": names}
        described = {"root": str(self.root.absolute()), "about": self.about}
        with writing(path) as temporary:
            save_file(tensors, temporary, {METADATA: json.dumps(described)})

    @classmethod
    def load(cls, path: str | Path) -> "Index":
        """Read an index, whose features are mapped from the file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, or is no index.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"no such index: {path}; --gallery FOLDER --model NAME makes it")
        try:
            with safe_open(path, "pt") as file:
                described = json.loads(file.metadata()[METADATA])
                names, states, features = (file.get_tensor(name) for name in ("names", "states", "features"))
            parts = names.numpy().tobytes().split(b"\0") if len(features) else []
            root = Path(described["root"])
            root = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
            index = cls(root, [*map(os.fsdecode, parts)], states.numpy(), features, described["about"])
            index._check()
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged, or no index of visionattn search: remove it and build it again"
            ) from error
        return index

    def _check(self) -> None:
        """Raise a ValueError unless the parts of an index from a file fit together."""
        about, count = self.about, len(self.names)
        kinds = {"model": str, "model_kwargs": dict, "preprocessing": dict, "checkpoint": str | None, "origin": str}
        if {*COMPARED} - about.keys() or not all(isinstance(about[key], kind) for key, kind in kinds.items()):
            raise ValueError("its description lacks parts")
        if len(about["preprocessing"]["input_size"]) != 3:
            raise ValueError("it does not say the size of its images")
        if self.states.shape != (count, 2) or self.features.shape != (count, self.features.shape[-1]):
            raise ValueError("its parts are not of one length")
        lengths = self.features.norm(dim=1)
        if self.features.dtype != torch.float32 or not bool((lengths < 1 + 1e-3).all()):  # false for NaN
            raise ValueError("its features are not vectors of length 1")

    def check_model(self, about: Mapping[str, Any], path: str | Path) -> None:
        """Raise a ValueError unless features of another description, or part of one, are comparable.

        `path` is that of the index, for the message.
        """
        for key, option in COMPARED.items():
            if key not in about or self.about[key] == about[key]:
                continue
            made, given = (_described(values, key) for values in (self.about, about))
            raise UserError(
                f"{path} was made with {key} {made}, not {given}: leave out {option}, or name another --index"
            )

    def load_model(self) -> LoadedModel:
        """Load the model that the index was made with.

        Raises:
            FileNotFoundError: Its checkpoint is not there any more.
            ValueError: Its architecture or weights lie in a repository, which a file must not cause to be read.
        """
        model, kwargs, origin = (self.about[key] for key in ("model", "model_kwargs", "origin"))
        if (
            is_elsewhere(model)
            or "pretrained_cfg" in kwargs
            or REMOTE & {*(kwargs.get("pretrained_cfg_overlay") or {})}
        ):
            raise UserError(
                f"the index is of {model}, which is not fetched because a file says so: if you trust it, pass --model "
                f"{model} and its --model_kwargs"
            )
        if self.about["checkpoint"] is None:
            return ModelSource(None, model, True, kwargs).load()
        checkpoint = Path(self.about["checkpoint"])
        if origin == "file":
            return ModelSource(checkpoint, model, False, kwargs).load()
        return ModelSource(checkpoint, weights=origin).load()  # of train.py, which knows its architecture


def _described(about: Mapping[str, Any], key: str) -> str:
    if key == "preprocessing":
        return ", ".join(f"{name} {value}" for name, value in about[key].items())
    return f"{about[key]} of {about['model']}" if key == "weights" else str(about[key])
