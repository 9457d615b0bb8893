"""Every shipped config trains for one step, or evaluates, on images made here; configs can extend others."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from visionattn.cli import evaluate
from visionattn.cli.configs import config_text, find_config, place_of, read_config
from visionattn.cli.errors import run
from visionattn.cli.train import main

REPOSITORY = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.yaml") if path.parent.name != "base")
EVALUATIONS = [path for path in CONFIGS if path.parent.name == "evaluation"]
# Mixers differ by the name of the model alone, which a test below holds them to, so one of them trains.
MIXERS = [path for path in CONFIGS if path.parent.name == "mixers"]
TRAININGS = [path for path in CONFIGS if path not in EVALUATIONS and (path not in MIXERS or path.stem == "full")]
# Small versions of the largest models: only arguments that make them slow are changed.
NARROW = "{depths: [1, 1, 1, 1], embed_dim: 32, num_heads: [1, 2, 4, 8]}"
NARROW_ISOTROPIC = "{depth: 2, embed_dim: 32, num_heads: 1}"
NARROW_TERMINATOR = "{embed_dims: [12, 24], slow_depths: [2, 2]}"
NARROW_DCAL = "{patch_size: 8, depth: 2, embed_dim: 24, num_heads: 2, img_size: SIZE}"
NARROW_VIT = "{patch_size: 8, depth: 2, embed_dim: 24, num_heads: 2, img_size: 32}"
NARROW_SEQUENCES = "{embed_dims: [12, 24], slow_depths: [2, 2], in_chans: 3, img_size: 1024}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for label in range(2):
            (root / split / f"class{label}").mkdir(parents=True)
            for number in range(2):
                image = Image.effect_noise((40, 36), 60).convert("RGB")
                image.save(root / split / f"class{label}" / f"{number}.jpg")
    return root


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images in the layout of Market-1501."""
    root = tmp_path_factory.mktemp("people")
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir()
        for identity in range(1, 3):
            for number in range(2):
                image = Image.effect_noise((32, 64), 60).convert("RGB")
                camera = 1 + (folder == "query") + number % 2
                image.save(root / folder / f"{identity:04d}_c{camera}s1_{number:06d}_00.jpg")
    return root


@pytest.mark.parametrize("config", TRAININGS, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_training_config_makes_one_step(
    config: Path,
    images: Path,
    people: Path,
    mnist_root: Path,
    dominoes_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    scenes = config.parent.name == "objects"
    embedded = config.stem in ("quickstart", "digits", "identities") or scenes or config.parent.name == "recall"
    reid = config.parent.name == "reid"
    options = [] if embedded else [f"--data.root={people if reid else images}", "--data.num_workers=0"]
    options += [] if embedded else ["--data.height=64", "--data.width=32"] if reid else ["--data.img_size=32"]
    if config.parent.name == "imagenet":
        isotropic = "isotropic" in config.stem or config.stem.startswith(("vitrpb", "vittt"))
        options.append(f"--model.model_kwargs={NARROW_ISOTROPIC if isotropic else NARROW}")
    if config.parent.name == "terminator":
        options.append(f"--model.model_kwargs={NARROW_SEQUENCES if config.stem == 'scifar10' else NARROW_TERMINATOR}")
    if config.parent.name in ("reid", "fine_grained"):
        options += [f"--model.model_kwargs={NARROW_DCAL.replace('SIZE', '[64, 32]' if reid else '32')}"]
        options += ["--model.pretrained=false", *(["--data.instances=2"] if reid else [])]
        options += [] if embedded else ["--data.name=market1501" if reid else "--data.name=folder"]
    if config.parent.name in ("cifar10", "transfer", "mixers", "ssl"):
        options.append("--data.holdout_per_class=1")
    if config.stem in ("smnist", "pmnist"):
        options += [f"--data.root={mnist_root}", "--data.img_size=28"]
    if config.stem == "dominoes":
        options += [f"--data.root={dominoes_root}", "--data.img_size=[64, 32]"]
    if scenes:
        options += ["--data.num_workers=0", "--data.image_size=32"]
    if config.stem == "dinosaur_coco":
        options += ["--data.name=synthetic", "--data.root=null", "--model.pretrained=false", "--model.decoder_dim=16"]
        options.append(f"--model.model_kwargs={NARROW_VIT}")
    options += [
        f"--data.batch_size={4 if reid else 2}",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.max_epochs=1",
    ]
    options += ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"]
    assert run(main, ["fit", f"--config={config}", *options]) == 0, capsys.readouterr().err
    (folder,) = (tmp_path / "runs").iterdir()
    checkpoint = torch.load(folder / "0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1


def test_mixers_are_compared_by_one_recipe() -> None:
    recipes = [read_config(str(path)) for path in MIXERS]
    names = [recipe["model"].pop("name") for recipe in recipes]
    assert all(name.startswith("iso_nano") for name in names)
    assert len(set(names)) == len(names)
    assert all(recipe == recipes[0] for recipe in recipes)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(path, marks=[pytest.mark.slow] * path.stem.startswith("vits14"), id=path.name)
        for path in EVALUATIONS
    ],
)
def test_evaluation_config_runs(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "r.json"
    kind, commands = config.stem, {"binding": "binding", "segmentation": "probe-seg", "probe": "probe"}
    command = next(commands[word] for word in kind.split("_") if word in commands)
    options = ["--model=vit_pico_patch4_32", "--pretrained=false", "--training.epochs=1", "--data.num_workers=0"]
    if kind.startswith("vits14") or command == "probe-seg":
        options += ["--model_kwargs=null", "--data.img_size=32"]
    if command == "probe":
        options += ["--data.name=digits", "--data.root=null", "--data.limit_per_class=4", "--training.lrs=0.01"]
    else:
        options += ["--data.name=synthetic", "--data.root=null", "--data.limit=4", "--control=null", "--seeds=1"]
    if command == "binding":
        options += ["--interventions.layers=null"]
    else:
        options += [f"--features.cache={tmp_path}"]
    rows = {"binding": 6 * 7, "probe-seg": 1, "probe": 7}[command]  # six layers, seven probes; seven heads
    assert run(evaluate.main, [command, f"--config={config}", *options, f"--output={output}"]) == 0, (
        capsys.readouterr().err
    )
    assert len(json.loads(output.read_text())["results"]) == rows


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_header_states_paper_command_and_results(config: Path) -> None:
    header = "\n".join(line for line in config.read_text().splitlines() if line.startswith("#"))
    assert "https://arxiv.org/abs/" in header
    assert "Expected:" in header
    assert "Measured:" in header
    command = re.search(r"python (?:train\.py fit|eval\.py [\w-]+) --config (\S+)", header)
    assert command is not None
    assert REPOSITORY / command[1] == config


@pytest.mark.parametrize("name", ["configs/cifar10/nat.yaml", "cifar10/nat.yaml", "cifar10/nat"])
def test_shipped_config_needs_no_checkout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == str(REPOSITORY / "configs/cifar10/nat.yaml")


def test_config_of_the_user_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").touch()
    assert find_config("quickstart") == "quickstart"


def test_shipped_config_by_name_names_the_run_and_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = "--trainer.max_epochs=1 --trainer.limit_train_batches=1 --trainer.limit_val_batches=1"
    assert run(main, ["fit", "--config=reid/identities", "--trainer.accelerator=cpu", *options.split()]) == 0
    assert "on identities" in capsys.readouterr().out
    assert (tmp_path / "runs/reid-identities/0/config.yaml").is_file()


def test_imagenet_recipes_equal_the_first_release() -> None:
    """The digest is of the 27 files of 0.1.0, each with its whole recipe."""
    paths = [path for path in CONFIGS if path.parent.name == "imagenet" and not path.stem.startswith("vittt")]
    values = {path.stem: read_config(str(path)) for path in paths}
    assert len(values) == 27
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    assert digest == "49140b80fd4185a8ded1bd6c2990968a4c04c811778ab12736827a2e934ca653"


def test_overlay_of_a_user_is_completed_by_its_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/base.yaml").write_text("base: imagenet/nat_tiny\ndata:\n  root: null\n  name: digits\n")
    (tmp_path / "mine/run.yaml").write_text("base: base.yaml\nmodel:\n  name: nat_pico\n  mixup: 0.1\n")
    assert run(main, ["fit", "--config=mine/run.yaml", "--model.lr_base=0.5", "--print_config"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    wanted = {
        "model": {"name": "nat_pico", "mixup": 0.1, "lr_base": 0.5, "cutmix": 1.0, "drop_path_rate": 0.2},
        "data": {"name": "digits", "root": None, "re_mode": "pixel"},
        "trainer": {"max_epochs": 310},
    }
    assert {section: {key: values[section][key] for key in keys} for section, keys in wanted.items()} == wanted
    assert "base" not in values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("base: absent\n", "c.yaml, line 1: no config file absent: base takes a file beside", id="absent"),
        pytest.param("base: [a, b]\n", "c.yaml, line 1: base takes the name of one config file", id="two"),
        pytest.param("model: {}\nbase: d.yaml\n", "d.yaml, line 1: c.yaml is based on this file", id="circle"),
        pytest.param("base: wrong.yaml\n", "unknown key model.nam (wrong.yaml, line 2); did you mean", id="key"),
        pytest.param("base: e.yaml\nmodel: {lr: x}\n", "--model.lr (c.yaml, line 2): expected float", id="own"),
    ],
)
def test_mistake_is_named_with_its_file_and_line(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    Path("d.yaml").write_text("base: c.yaml\n")
    Path("e.yaml").write_text("model:\n  lr: 0.1\n")
    Path("wrong.yaml").write_text("model:\n  nam: x\n")
    assert run(main, ["fit", "--config=c.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_base_and_overlay_keep_values_as_they_are_written(tmp_path: Path) -> None:
    base, overlay = tmp_path / "b.yaml", tmp_path / "c.yaml"
    base.write_text("model:\n  lr: 1e-3\n  opt_kwargs: {a: 1, b: 2}\n")
    overlay.write_text("base: b.yaml\nmodel:\n  opt_kwargs: {a: 3}\n")
    assert config_text(str(overlay)) == "model:\n  lr: 1e-3\n  opt_kwargs: {a: 3}\n"
    assert place_of(str(overlay), "model.lr") == f"{base}, line 2"
    assert place_of(str(overlay), "model.opt_kwargs") == f"{overlay}, line 3"
