"""Draw the images of README and docs/: windows, and everything on the page gallery.md.

    python docs/gallery.py

The blocks of gallery.md run in their order, in a folder of their own. An image ``images/NAME.webp`` on the page is the
file ``NAME.png`` that they wrote, made smaller. This takes minutes on two CPU cores, and needs the extra ``docs``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from visionattn.viz import WINDOWS, save_windows

DOCS = Path(__file__).parent
PAGE = DOCS / "gallery.md"
IMAGES = DOCS / "images"
WIDTH = 1400
"""Largest width of an image, in pixels."""


def main() -> None:
    """Draw everything."""
    draw_windows()
    with tempfile.TemporaryDirectory() as folder:
        run_blocks(Path(folder))
        shrink_images(Path(folder))


def draw_windows() -> None:
    """Draw all kinds of window side by side, and each in a file of its own."""
    save_windows(WINDOWS, DOCS / "windows.png")
    for name, window in WINDOWS.items():
        save_windows({"": window}, IMAGES / f"window-{name.split()[0]}.png")


def run_blocks(folder: Path) -> None:
    """Run the Python and bash blocks of the page in this folder, each as a process of its own."""
    blocks = re.findall(
        r"^```(python|bash)[^\n]*\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    for language, code in blocks:
        print(code)
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
        subprocess.run(command, cwd=folder, check=True)


def shrink_images(folder: Path) -> None:
    """Write each image of the page from the file of its name, in the format that the page asks for."""
    for link in re.findall(r"\(images/([\w-]+\.\w+)\)", PAGE.read_text(encoding="utf-8")):
        drawn = Image.open(folder / f"{Path(link).stem}.png").convert("RGB")
        drawn.thumbnail((WIDTH, 10_000), Image.Resampling.LANCZOS)
        drawn.save(IMAGES / link, quality=82, method=6)


if __name__ == "__main__":
    main()
