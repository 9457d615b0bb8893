"""Images for re-identification as the loaders read them."""

from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from visionattn.data.reid.layouts import ReidImage


class ReidSource:
    """Some images, whose targets are identities, or in training their numbers.

    Args:
        images: images of the source.
        open_image: function that decodes one image.
        class_to_idx: numbers of the identities by name; None keeps the identities.
    """

    def __init__(
        self,
        images: Sequence[ReidImage],
        open_image: Callable[[ReidImage], Image.Image],
        class_to_idx: Mapping[str, int] | None = None,
    ) -> None:
        self.images, self.class_to_idx, self._open = images, class_to_idx, open_image
        self._targets = [image.pid if class_to_idx is None else class_to_idx[image.label] for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its target."""
        return self._open(self.images[index]), self._targets[index]

    def name_of(self, index: int) -> str:
        """Return the path of the file, or another name."""
        return self.images[index].name

    def targets(self) -> Sequence[int]:
        """Return the targets of all images."""
        return self._targets

    def cameras(self) -> Sequence[int]:
        """Return the cameras of all images."""
        return [image.camera for image in self.images]
