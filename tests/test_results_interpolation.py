"""results/interpolation.py: missing pixels by local linear attention and by softmax attention."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
CIFAR10 = ROOT / "data" / "cifar10"


@pytest.fixture
def module() -> ModuleType:
    """Import the script."""
    return import_module("results.interpolation")


def test_slope_is_exact_and_a_wave_is_nearer_than_by_means(module: ModuleType) -> None:
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    slope, wave = 0.01 * rows + 0.02 * columns, 0.5 + 0.5 * torch.sin(rows / 3) * torch.cos(columns / 4)
    images = torch.stack([slope, wave])[..., None]
    kept = torch.rand(images.shape[:3], generator=torch.Generator().manual_seed(0)) < 0.5
    mean, linear = module.interpolate(images, kept, bandwidth=1.0)
    gains = [module.psnr(linear[i], images[i], ~kept[i]) - module.psnr(mean[i], images[i], ~kept[i]) for i in range(2)]
    assert gains[0] > 10
    assert gains[1] > 3


@pytest.mark.slow
def test_local_linear_gains_at_every_bandwidth_on_photographs(module: ModuleType) -> None:
    if not (CIFAR10 / "test").is_dir():
        pytest.skip(f"no CIFAR-10 in {CIFAR10}")
    images = module.read_images(CIFAR10 / "test", 50)
    for share in module.SHARES:
        for bandwidth in module.BANDWIDTHS:
            mean, linear = module.compare(images, share, bandwidth)
            assert linear - mean > 0.2, (share, bandwidth)


def test_too_many_images_are_named(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / "0.png").touch()
    with pytest.raises(ValueError, match="--images must be 1 to 1"):
        module.read_images(tmp_path, 2)
