"""Names in data sets and archives never lead outside the given folders, in reading or writing."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from visionattn.data.loading import ImageDataset
from visionattn.data.sampling import Draw
from visionattn.data.sources import open_source
from visionattn.evaluation import save_ranked_lists, save_rollouts
from visionattn.io import slug
from visionattn.metrics.gallery import Gallery

ESCAPES = ["../../outside", "/tmp/outside", "a/../../outside", "..", "sub\\..\\outside", "new\nline", "~/x", "$HOME"]


def jpeg(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def files_in(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Write a tar with members that lead outside by their names and by links."""
    (tmp_path / "secret.jpg").write_bytes(jpeg("blue"))
    path = tmp_path / "in" / "train.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name in ("good/0.jpg", "../escape/1.jpg", f"{tmp_path}/absolute/2.jpg", "good/../../up/3.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg())
            tar.addfile(info, io.BytesIO(jpeg()))
        for kind, name in ((tarfile.SYMTYPE, "links/soft.jpg"), (tarfile.LNKTYPE, "links/hard.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.jpg")
            tar.addfile(info)
    return path


def test_archive_is_read_without_writing_or_following_links(archive: Path, tmp_path: Path) -> None:
    before = files_in(tmp_path)
    source: Any = open_source("", str(archive), "train")
    dataset = ImageDataset(source, lambda opened: torch.tensor(opened.getpixel((8, 8))))
    items = [dataset[Draw(index)] for index in range(len(source))]
    read = [item.image for item in items if item.image is not None]
    assert read, "the good one at least"
    assert all(image[0] > 200 for image in read), "the blue one lies outside"
    # timm may keep a list of the members next to the archive.
    assert {path for path in files_in(tmp_path) - before if path.parts[0] != "in"} == set()


@pytest.mark.parametrize("name", ESCAPES)
def test_files_named_after_images_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    folders = [tmp_path / "one" / kind for kind in ("ranked", "rolled")]
    source = SimpleNamespace(name_of=lambda place: name, read=lambda place: (Image.new("RGB", (8, 8)), 0))
    loader = SimpleNamespace(dataset=SimpleNamespace(source=source))
    found = Gallery(torch.arange(3), torch.eye(3), torch.zeros(3).long(), torch.arange(3))
    data = SimpleNamespace(val_dataloader=lambda: loader, num_query=1)
    result: Any = SimpleNamespace(features=found, data=data, reranked=False)
    save_ranked_lists(folders[0], result, 1)

    model = torch.nn.Linear(1, 1)
    model.rollout_maps = lambda image: (torch.rand(1, 4), torch.tensor([[1]]))  # type: ignore[assignment]
    model.grid = (2, 2)  # type: ignore[assignment]
    batch = SimpleNamespace(image=torch.zeros(1, 3, 8, 8), name=[name])
    rolled = SimpleNamespace(one_by_one=lambda places: [(place, batch) for place in places])
    preprocessing = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    data = SimpleNamespace(val_dataloader=lambda: rolled, preprocessing=preprocessing)
    save_rollouts(folders[1], model, data, 1, 1)
    assert [path.parent for path in sorted(tmp_path.rglob("*")) if path.is_file()] == folders


@pytest.mark.parametrize("name", [*ESCAPES, f"local-dir:{ESCAPES[0]}", "hf-hub:a/../../b"])
def test_model_names_like_paths_become_file_names(name: str) -> None:
    made = f"{slug(name)}-linear.json"
    assert Path(made).name == made
    assert not {"/", "\\", "\n", ":", "~", "$"} & set(made)
