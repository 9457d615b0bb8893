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

from visionattn.data.file_sources import list_images
from visionattn.embedding.embedder import Embedder
from visionattn.embedding.images import States, file_states
from visionattn.errors import UserError
from visionattn.evaluation.source import LoadedModel, ModelSource
from visionattn.output import writing

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


class Changes(NamedTuple):
    """Numbers of images by which an update changed an index, and a line for each image that could not be read."""

    new: int
    changed: int
    removed: int
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
        files = list_images([root])
        names, states = [os.path.relpath(file, root) for file in files], file_states(files)
        rows = {name: row for row, name in enumerate(self.names)}
        if rows and not rows.keys() & set(names):
            raise UserError(
                f"the index is of {self.root}, and {root} has none of its images: name another --index for this gallery"
            )
        known = {
            number: rows[name]
            for number, name in enumerate(names)
            if name in rows and np.array_equal(self.states[rows[name]], states[number])
        }
        features = torch.empty(len(files), *embedder.shape)
        features[[*known.keys()]] = self.features[[*known.values()]]
        wanted, unreadable = [number for number in range(len(files)) if number not in known], []
        there = set(known)
        if wanted:
            numbers = {files[number]: number for number in wanted}
            with embedder.extract([*numbers], folder, may_be_none=True) as found:
                read = [numbers[file] for file in found.files]
                features[read] = torch.from_numpy(found.array())
                unreadable = found.unreadable
            there.update(read)
        if not there:
            raise UserError(f"not one image of {root} could be read: {unreadable[0]}")
        kept = sorted(there)
        index = Index(root.resolve(), [names[n] for n in kept], states[kept], features[kept], embedder.about)
        changed = sum(names[number] in rows for number in there - set(known))
        changes = Changes(len(there) - len(known) - changed, changed, len(rows.keys() - set(index.names)), unreadable)
        return index, changes

    def save(self, path: str | Path) -> None:
        """Write the index atomically."""
        names = np.frombuffer(b"\0".join(map(os.fsencode, self.names)), np.uint8)
        tensors = {"features": self.features.contiguous(), "states": self.states, "names": names}
        about = {METADATA: json.dumps({"root": str(self.root), "about": self.about})}
        with writing(path) as temporary:
            save_file({name: torch.as_tensor(value) for name, value in tensors.items()}, temporary, about)

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
            index = cls(
                Path(described["root"]), [*map(os.fsdecode, parts)], states.numpy(), features, described["about"]
            )
            if not len(index.names) == len(features) == len(states):
                raise ValueError("other numbers of names and features")  # noqa: TRY301
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged, or no index of visionattn search: remove it and build it again") from error
        return index

    def check_model(self, about: Mapping[str, Any], path: str | Path) -> None:
        """Raise a ValueError unless features of another description, or part of one, are comparable.

        `path` is that of the index, for the message.
        """
        for key, option in COMPARED.items():
            if key not in about or self.about[key] == about[key]:
                continue
            made, given = (_described(values, key) for values in (self.about, about))
            raise UserError(f"{path} was made with {key} {made}, not {given}: leave out {option}, or name another --index")

    def load_model(self) -> LoadedModel:
        """Load the model that the index was made with.

        Raises:
            FileNotFoundError: Its checkpoint is not there any more.
        """
        about = self.about
        if about["checkpoint"] is None:
            pretrained = about["origin"] != "random"
            return ModelSource(None, about["model"], pretrained, about["model_kwargs"]).load()
        # A checkpoint of train.py knows its architecture.
        weights = about["origin"]
        if weights == "file":
            return ModelSource(Path(about["checkpoint"]), about["model"], False, about["model_kwargs"]).load()
        return ModelSource(Path(about["checkpoint"]), weights=weights).load()


def _described(about: Mapping[str, Any], key: str) -> str:
    if key == "preprocessing":
        return ", ".join(f"{name} {value}" for name, value in about[key].items())
    return f"{about[key]} of {about['model']}" if key == "weights" else str(about[key])
