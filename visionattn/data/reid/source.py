"""Pictures for re-identification as the loaders read them."""

from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from visionattn.data.reid.layouts import Picture


class ReidSource:
    """Some pictures, whose targets are identities, or in training their numbers.

    Args:
        pictures: which.
        open_picture: decodes one.
        class_to_idx: numbers of the identities, by name; None leaves them as they are.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        open_picture: Callable[[Picture], Image.Image],
        class_to_idx: Mapping[str, int] | None = None,
    ) -> None:
        self.pictures, self.class_to_idx, self._open = pictures, class_to_idx, open_picture
        ids = [picture.pid for picture in pictures]
        self._targets = ids if class_to_idx is None else [class_to_idx[str(pid)] for pid in ids]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The picture and its target."""
        return self._open(self.pictures[index]), self._targets[index]

    def name_of(self, index: int) -> str:
        """Path of the file, or the like."""
        return self.pictures[index].name

    def targets(self) -> Sequence[int]:
        """Targets of all pictures."""
        return self._targets

    def cameras(self) -> Sequence[int]:
        """Cameras of all pictures."""
        return [picture.camera for picture in self.pictures]
