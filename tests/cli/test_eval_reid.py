"""eval.py reid, in this process, on the embedded images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tasks.trainers import create_trainer
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.data import ReidData
from visionattn.metrics.reranking import rerank
from visionattn.metrics.retrieval import evaluate_distances, evaluate_retrieval
from visionattn.tasks.reid import ReidTask
from visionattn.training import load_checkpoint
from visionattn.training.branches import reid_features

DCAL = {
    "name": "dcal_deit_tiny_patch16_224",
    "model_kwargs": {"img_size": [64, 32], "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2},
}


def reid(*argv: str | Path) -> int:
    return run(main, ["reid", "--device", "cpu", "--data.num_workers", "0", *map(str, argv)])


def train(folder: Path, **options: Any) -> Path:
    """Train for one step and return the checkpoint."""
    trainer = create_trainer(folder, limit_train_batches=1, limit_val_batches=0)
    torch.manual_seed(0)
    trainer.fit(ReidTask(**options), datamodule=ReidData("identities", batch_size=8, num_workers=0, seed=0))
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("plain"), name="test_resnet")


@pytest.fixture(scope="module")
def dcal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("dcal"), **DCAL)


def expected(checkpoint: Path, flip: bool = False, reranked: bool = False, inference: Any = None) -> dict[str, Any]:
    model, _ = load_checkpoint(checkpoint)
    if inference:
        model.set_inference(inference)
    data = ReidData("identities", num_workers=0)
    data.setup("validate")
    batches: list[Any] = [batch.to("cpu") for batch in (each.to("cpu") for each in data.val_dataloader())]
    ids, cameras = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("target", "camera"))
    with torch.no_grad():
        features = torch.cat([reid_features(model, batch.image, flip) for batch in batches])
    query, gallery = slice(data.num_query), slice(data.num_query, None)
    known = (ids[query], ids[gallery], cameras[query], cameras[gallery])
    if reranked:
        return evaluate_distances(rerank(features[query], features[gallery]), *known)
    return evaluate_retrieval(features[query], features[gallery], *known)


def same(result: dict[str, Any], measured: dict[str, Any]) -> bool:
    return all(result[name] == pytest.approx(measured[name], abs=1e-5) for name in ("mAP", "mINP", "cmc"))


def test_reid_opens_the_data_set_of_the_checkpoint(tmp_path, plain, capsys):
    assert reid("--checkpoint", plain, "--output", tmp_path / "r.json") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert same(result, expected(plain))
    assert (result["model"], result["dataset"], result["checkpoint"]) == ("test_resnet", "identities", str(plain))
    assert result["num_query"] == result["num_valid_queries"] + result["num_skipped_queries"] > 0
    assert result["num_gallery"] > 0
    assert len(result["cmc"]) == 50
    assert result["before_reranking"] is None
    assert result["preprocessing"]["input_size"] == [3, 64, 32]
    assert {"versions", "hardware", "command", "git_revision"} <= set(result)
    assert f"{result['mAP']:.2%}" in capsys.readouterr().out


def test_flip_and_rerank_agree_with_the_metrics(tmp_path, plain, capsys):
    assert reid("--checkpoint", plain, "--flip", "--rerank", "--output", tmp_path / "r.json") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert same(result, expected(plain, flip=True, reranked=True))
    assert same(result["before_reranking"], expected(plain, flip=True))
    assert "re-ranked" in capsys.readouterr().out


def test_inference_option_chooses_branches_of_dcal(tmp_path, dcal):
    results = {}
    for inference in ("combined", "sa"):
        assert reid("--checkpoint", dcal, "--inference", inference, "--output", tmp_path / "r.json") == 0
        results[inference] = json.loads((tmp_path / "r.json").read_text())
        assert results[inference]["inference"] == inference
        assert same(results[inference], expected(dcal, inference=inference))
    assert results["sa"]["mAP"] != results["combined"]["mAP"]


def test_random_weights_are_not_evaluated(capsys):
    assert reid("--model", "test_resnet") == 1
    assert capsys.readouterr().err == (
        "error: nothing to evaluate, for the weights of test_resnet are random: pass --pretrained for those that are "
        "published, or a checkpoint\n"
    )


def test_ranked_lists_and_rollouts_are_drawn(tmp_path, dcal):
    ranked, rollout = tmp_path / "ranked", tmp_path / "a" / "rollout"
    assert reid("--checkpoint", dcal, "--ranked-lists", ranked, "--rollout", rollout, "--num_examples", "3") == 0
    for folder in (ranked, rollout):
        files = sorted(folder.glob("*.png"))
        assert len(files) == 3
        with Image.open(files[0]) as image:
            assert min(image.size) >= 32


def test_broken_image_of_a_market_folder_is_named_or_left_out(tmp_path, plain, capsys):
    root = tmp_path / "market"
    for folder, cameras in (("query", (1,)), ("bounding_box_test", (2, 3))):
        (root / folder).mkdir(parents=True)
        for pid in (3, 4):
            for camera in cameras:
                colour = (40 * pid, 90, 10 * camera)
                Image.new("RGB", (16, 32), colour).save(root / folder / f"{pid:04d}_c{camera}s1_000001_00.jpg")
    broken = root / "bounding_box_test" / "0004_c3s1_000001_00.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    argv = ["--checkpoint", plain, "--data.name", "market1501", "--data.root", root, "--output", tmp_path / "r.json"]
    assert reid(*argv) == 1
    assert str(broken) in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "r.json").exists()
    assert reid(*argv, "--data.on_error", "skip") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["num_query"], result["num_gallery"], result["num_unreadable"]) == (2, 3, 1)
    assert (result["mAP"], result["protocol"]) == (1.0, "camera")


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        ([], 2, "give --checkpoint FILE, or --model NAME"),
        (["--checkpoint", "gone.ckpt"], 1, "no checkpoint at gone.ckpt"),
        (["--checkpoint", "{plain}", "--inference", "sa"], 1, "test_resnet has one branch"),
        (["--checkpoint", "{plain}", "--rollout", "{folder}"], 1, "test_resnet selects no patches"),
        (["--checkpoint", "{plain}", "--ranked-lists", "{plain}"], 1, "cannot write {plain}"),
        (["--checkpoint", "{plain}", "--data.name", "market1501"], 1, "needs --data.root"),
        (
            ["--checkpoint", "{plain}", "--data.name", "market1501", "--data.root", "gone"],
            1,
            "no such data folder: gone",
        ),
        (["--checkpoint", "{plain}", "--data.name", "markt"], 1, "unknown data set 'markt'"),
        (["--checkpoint", "{plain}", "--data.rot", "x"], 2, "did you mean --data.root"),
        (["--checkpoint", "{plain}", "--data.batch_size", "0"], 1, "--data.batch_size must be at least 1, got 0"),
        (["--checkpoint", "{plain}", "--data.height", "0"], 1, "--data.height must be at least 1"),
        (["--checkpoint", "{plain}", "--num_examples", "0"], 2, "--num_examples must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_reid_errors_name_the_input_in_one_line(tmp_path, plain, capsys, options, status, says):
    names = {"plain": plain, "folder": tmp_path}
    assert reid(*(option.format(**names) for option in options)) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says.format(**names) in line


def test_classify_names_the_command_for_a_reid_checkpoint(plain, capsys):
    assert run(main, ["classify", "--device", "cpu", "--checkpoint", str(plain)]) == 1
    assert "eval.py reid evaluates it" in capsys.readouterr().err
