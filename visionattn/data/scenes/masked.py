"""Images in one folder, and masks of the same relative names in another."""

from pathlib import Path

from visionattn.data.errors import DataError
from visionattn.data.finding import Finder


class MaskedImages:
    """Images under a folder, each with a PNG file of the same relative name under another one.

    Args:
        images: The folder of the images.
        masks: The folder of the masks.
        remedy: What is expected, for errors.

    Raises:
        DataError: There are no images, or some have no mask.
    """

    def __init__(self, images: Path, masks: Path, remedy: str) -> None:
        self.images, self.masks = images, masks
        finder = Finder(images)
        found = (Path(folder, name) for folder, _, names in finder.walk() for name in names)
        self.paths = sorted(path.relative_to(images) for path in found)
        finder.report()
        if not self.paths:
            raise DataError(f"no images under {images}: {remedy}")
        if lonely := [index for index in range(len(self)) if not self.mask(index).is_file()]:
            raise DataError(
                f"{len(lonely):,} of {len(self):,} images under {images} have no mask: there is no "
                f"{self.mask(lonely[0])} for {self.paths[lonely[0]]}; add it, or remove the image"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Path:
        """Return the path of an image."""
        return self.images / self.paths[index]

    def mask(self, index: int) -> Path:
        """Return the path of a mask."""
        return self.masks / self.paths[index].with_suffix(".png")
