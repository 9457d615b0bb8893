"""Draw the images of README and docs/: the kinds of window, everything on the page gallery.md, and README's image.

    python docs/gallery.py

The blocks of gallery.md run in their order, in a folder of their own. An image ``images/NAME.webp`` on the page is the
file ``NAME.png`` that they wrote, made smaller. This takes some minutes on two CPU cores, and needs the extra ``docs``.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import visionattn
from visionattn.analysis.attention import attention_layers, record_attention
from visionattn.analysis.components import fit_colours, patch_features
from visionattn.analysis.saliency import grad_cam
from visionattn.analysis.subject import Subject, prepare_subject
from visionattn.layers.dual_cross_attention import rollout_class_token
from visionattn.probing.features.splits import freeze
from visionattn.viz import WINDOWS, save_windows
from visionattn.viz.components import paint_patches
from visionattn.viz.heat import draw_heat
from visionattn.viz.image import Pixels, scale_to_height
from visionattn.viz.sheet import caption, join_tiles, stack_rows

DOCS = Path(__file__).parent
PAGE = DOCS / "gallery.md"
IMAGES = DOCS / "images"
WIDTH = 1200
"""Largest width of an image of the page, in pixels."""
IMG_SIZE, TILE = 128, 200
"""Edge of a photograph, in pixels, as the models see it and in README's image."""


def main() -> None:
    """Draw everything."""
    draw_windows()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run_blocks()
        shrink_images(Path(folder))
        compose_readme(Path(folder) / "photos")


def draw_windows() -> None:
    """Draw all kinds of window side by side, and each in a file of its own."""
    save_windows(WINDOWS, DOCS / "windows.png")
    for name, window in WINDOWS.items():
        save_windows({"": window}, IMAGES / f"window-{name.split()[0]}.png")


def run_blocks() -> None:
    """Run the page's blocks of Python, in one namespace, and of bash."""
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for language, code in re.findall(r"^```(python|bash)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        print(code)
        if language == "python":
            exec(code, names)
        else:
            subprocess.run(["bash", "-ec", code], check=True)


def shrink_images(folder: Path) -> None:
    """Write each image of the page from the file of its name."""
    for name in re.findall(r"\(images/([^)]+\.webp)\)", PAGE.read_text(encoding="utf-8")):
        (drawn,) = folder.rglob(f"{name.removesuffix('.webp')}.png")
        image = Image.open(drawn).convert("RGB")
        image.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
        image.save(IMAGES / name, quality=80, method=6)


def compose_readme(photos: Path) -> None:
    """Draw README's image: two strips of two photographs, each with three things to see in it."""
    files = [str(photos / f"{name}.png") for name in ("cat", "pagoda", "dahlia", "rocket")]
    vit, nat = (
        prepare_subject(visionattn.load_model(name, pretrained=True), files, img_size=IMG_SIZE, device="cpu")
        for name in ("vit_nano_patch4_32.cifar10", "nat_pico.cifar10")
    )
    kinds = {
        "image": [enlarge(pixels) for pixels in vit.pixels],
        "attention rollout": rollouts(vit),
        "features as colours": components(vit),
        "Grad-CAM": grad_cams(nat),
    }
    strips = [join_tiles(tiles) for tiles in zip(*kinds.values(), strict=True)]
    header = join_tiles([caption(name, TILE, 0.5) for name in kinds])
    pairs = [(header, header), *zip(strips[::2], strips[1::2], strict=True)]
    sheet = stack_rows([np.concatenate(pair, axis=1) for pair in pairs])
    Image.fromarray(sheet).save(IMAGES / "readme.webp", quality=85, method=6)


def rollouts(vit: Subject) -> list[Pixels]:
    """Draw the rollout of the class token over each image."""
    layers = attention_layers(vit.model)
    with record_attention(dict(enumerate(layers)), lambda layer: layer.weights.mean(1)) as found, torch.no_grad():
        vit.model(vit.images)
    rolled = rollout_class_token(list(found.values()))[:, layers[0].num_prefix_tokens :]
    maps = rolled.unflatten(1, layers[0].grid).numpy()
    pairs = zip(vit.pixels, maps, strict=True)
    return [draw_heat(enlarge(pixels), scores, high=np.quantile(scores, 0.99)) for pixels, scores in pairs]


def components(vit: Subject) -> list[Pixels]:
    """Draw the first three principal components of patch features as colours."""
    preprocessing = {**vit.loaded.spec.preprocessing, "input_size": tuple(vit.images.shape[1:])}
    features = patch_features(freeze(vit.loaded, ["last"], preprocessing, torch.device("cpu"), "32-true"), vit.images)
    colours = fit_colours(features, foreground=False)(features).colours
    return [paint_patches(each, (TILE, TILE)) for each in colours]


def grad_cams(nat: Subject) -> list[Pixels]:
    """Draw the Grad-CAM map of the predicted class over each image."""
    with torch.no_grad():
        classes = nat.model(nat.images).argmax(-1)
    maps = grad_cam(nat.model, nat.images, classes).numpy()
    return [draw_heat(enlarge(pixels), scores, low=0) for pixels, scores in zip(nat.pixels, maps, strict=True)]


def enlarge(pixels: Pixels) -> Pixels:
    """Resize an image to a tile."""
    return scale_to_height(pixels, TILE)


if __name__ == "__main__":
    main()
