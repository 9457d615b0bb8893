"""eval.py classify and throughput, in this process, on small images."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import visionattn.cli.classify
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main
from visionattn.data import ImageClassificationData
from visionattn.evaluation import count_macs
from visionattn.training import create_model, load_checkpoint

FAST = ["--device", "cpu", "--data.num_workers", "0"]


def classify(*argv: str | Path) -> int:
    return run(main, ["classify", *FAST, *map(str, argv)])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def expected_predictions(checkpoint: Path, root: Path) -> list[tuple[str, str]]:
    """Return (class, predicted class) of each validation image, computed one at a time in double precision."""
    model, spec = load_checkpoint(checkpoint)
    data = ImageClassificationData(
        root=str(root), img_size=32, mean=[0.5] * 3, std=[0.5] * 3, crop_pct=1.0, batch_size=1
    )
    data.setup("validate")
    pairs = []
    for batch in (each.to("cpu") for each in data.val_dataloader()):
        with torch.no_grad():
            predicted = model.double()(batch.image.double()).argmax().item()
        pairs.append((spec.class_names[batch.target.item()], spec.class_names[predicted]))
    return pairs


def test_classify_uses_the_preprocessing_of_the_checkpoint(tmp_path, checkpoint, colour_folder, capsys):
    output = tmp_path / "new" / "folder" / "r.json"
    per_class, matrix = tmp_path / "c.csv", tmp_path / "m.png"
    files = ["--output", output, "--per-class", per_class, "--confusion-matrix", matrix]
    assert classify("--checkpoint", checkpoint, "--data.root", colour_folder, "--data.batch_size", "4", *files) == 0

    pairs = expected_predictions(checkpoint, colour_folder)
    right = [true for true, predicted in pairs if true == predicted]
    result = json.loads(output.read_text())
    assert result["num_images"] == len(pairs) == 9
    assert result["top1"] == len(right) / 9
    assert result["top5"] == 1.0
    assert (result["model"], result["checkpoint"], result["dataset"]) == ("test_resnet", str(checkpoint), "folder")
    assert result["images_per_second"] > 0
    assert result["preprocessing"]["input_size"] == [3, 32, 32]
    assert {"versions", "hardware", "command", "git_revision"} <= set(result)

    with per_class.open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["blue", "green", "red"]
    for name, row in rows.items():
        assert int(row["num_images"]) == 3
        assert float(row["top1"]) == right.count(name) / 3
        assert int(row["num_predicted"]) == sum(predicted == name for _, predicted in pairs)
    with Image.open(matrix) as image:
        assert image.size[0] > 300
    assert "test_resnet" in capsys.readouterr().out


def test_classify_opens_the_data_set_of_the_checkpoint(tmp_path, digits_checkpoint):
    assert classify("--checkpoint", digits_checkpoint, "--output", tmp_path / "r.json") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["dataset"], result["num_images"], result["num_classes"]) == ("digits", 355, 10)


def test_weights_option_chooses_raw_weights(tmp_path, checkpoint, colour_folder):
    rates = {}
    for weights in ("average", "raw"):
        output = tmp_path / f"{weights}.json"
        argv = ["--checkpoint", checkpoint, "--data.root", colour_folder, "--weights", weights, "--output", output]
        assert classify(*argv) == 0
        rates[weights] = json.loads(output.read_text())
    assert rates["raw"]["weights"] == "raw"
    # All raw weights are 0, and so are all logits: the first class wins.
    assert rates["raw"]["top1"] == 1 / 3


def test_model_option_names_the_architecture_of_plain_weights(tmp_path, checkpoint, colour_folder):
    model, spec = load_checkpoint(checkpoint)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    argv = ["--model", "test_resnet", "--checkpoint", tmp_path / "model.safetensors", "--output", tmp_path / "r.json"]
    assert classify(*argv, "--data.root", colour_folder, "--data.img_size", "32", "--data.crop_pct", "1") == 0
    pairs = expected_predictions(checkpoint, colour_folder)
    assert json.loads((tmp_path / "r.json").read_text())["top1"] == sum(a == b for a, b in pairs) / len(pairs)
    assert spec.num_classes == 3


def test_results_are_written_before_the_table_is_printed(tmp_path, checkpoint, colour_folder, capsys, monkeypatch):
    def broken(rows, title=None):
        raise UnicodeEncodeError("ascii", "┏", 0, 1, "ordinal not in range")

    monkeypatch.setattr(visionattn.cli.classify, "print_table", broken)
    output = tmp_path / "r.json"
    assert classify("--checkpoint", checkpoint, "--data.root", colour_folder, "--output", output) == 1
    assert json.loads(output.read_text())["num_images"] == 9
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_truncated_image_is_named_or_left_out(tmp_path, checkpoint, colour_folder, capsys):
    broken = colour_folder / "val" / "green" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    argv = ["--checkpoint", checkpoint, "--data.root", colour_folder, "--output", tmp_path / "r.json"]
    assert classify(*argv) == 1
    assert str(broken) in error_line(capsys)
    assert not (tmp_path / "r.json").exists()

    assert classify(*argv, "--data.on_error", "skip") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["num_images"], result["num_unreadable"]) == (8, 1)
    assert str(broken) in result["unreadable"][0]


def test_logits_that_are_not_finite_are_an_error(tmp_path, checkpoint, colour_folder, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["model.fc.weight"].fill_(3e38)
    torch.save(content, checkpoint)
    assert classify("--checkpoint", checkpoint, "--data.root", colour_folder) == 1
    assert "no finite numbers" in error_line(capsys)


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        ([], 2, "give --checkpoint FILE, or --model NAME"),
        (["--checkpoint", "gone.ckpt"], 1, "no checkpoint at gone.ckpt"),
        (["--checkpoint", "{checkpoint}"], 1, "--data.root"),
        (["--checkpoint", "{checkpoint}", "--data.root", "nowhere"], 1, "no such data folder: nowhere"),
        (["--checkpoint", "{checkpoint}", "--data.root", "{empty}"], 1, "no images under {empty}"),
        (["--checkpoint", "{checkpoint}", "--data.root", "{others}"], 1, "purple"),
        (["--checkpoint", "{checkpoint}", "--model", "test_vit", "--data.root", "{root}"], 1, "does not fit test_vit"),
        (["--checkpoint", "{checkpoint}", "--pretrained"], 2, "--pretrained and --checkpoint"),
        (["--checkpoint", "{checkpoint}", "--data.rot", "{root}"], 2, "did you mean --data.root"),
        (["--checkpoint", "{checkpoint}", "--device", "cuda:99"], 1, "'cuda:99' is not in this machine"),
        (["--checkpoint", "{checkpoint}", "--device", "gpu!"], 1, "unknown device 'gpu!'"),
        (["--checkpoint", "{checkpoint}", "--confusion-matrix", "m.xls"], 1, ".png, .pdf, .svg"),
        (["--checkpoint", "{checkpoint}", "--output", "{root}"], 1, "{root} is a folder"),
        (["--checkpoint", "{checkpoint}", "--output", "{checkpoint}/r.json"], 1, "cannot write {checkpoint}/r.json"),
        (["--model", "resnt18"], 1, "unknown model 'resnt18': did you mean"),
        (["--model", "test_resnet", "--data.root", "{root}"], 1, "nothing to evaluate, for the weights of test_resnet"),
        (["--model", "test_resnet", "--checkpoint", "{two}", "--data.root", "{root}"], 1, "has 3 classes"),
        (["--model", "test_resnet", "--checkpoint", "{five}", "--data.root", "{root}"], 1, "has 3 classes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_classify_errors_name_the_input_in_one_line(tmp_path, checkpoint, colour_folder, capsys, options, status, says):
    empty, others = tmp_path / "empty", tmp_path / "others"
    (empty / "val" / "red").mkdir(parents=True)
    (others / "val" / "purple").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(others / "val" / "purple" / "0.png")
    names = {"checkpoint": checkpoint, "empty": empty, "others": others, "root": colour_folder}
    for name, count in (("two", 2), ("five", 5)):
        names[name] = tmp_path / f"{name}.pth"
        torch.save(create_model("test_resnet", num_classes=count).state_dict(), names[name])
    assert classify(*(option.format(**names) for option in options)) == status
    assert says.format(**names) in error_line(capsys)


def test_throughput_keeps_the_other_rows_if_a_model_fails(tmp_path, capsys):
    output, table = tmp_path / "t.json", tmp_path / "t.csv"
    # A vision transformer with patches of 16 cannot have 33 pixels; the other model can.
    argv = ["--models", "test_vit,test_resnet", "--img-size", "33", "--batch-size", "2", "--seconds", "0.01"]
    argv += ["--device", "cpu", "--train", "--output", str(output), "--csv", str(table)]
    assert run(main, ["throughput", *argv]) == 1
    captured = capsys.readouterr()
    assert "1 of 2 models could not be measured: test_vit" in captured.err.splitlines()[-1]
    failed, measured = json.loads(output.read_text())["results"]
    assert failed["model"] == "test_vit"
    assert "16" in failed["error"]
    assert measured["params_m"] == pytest.approx(0.469688)
    assert measured["images_per_second"] == pytest.approx(2000 / measured["median_ms"])
    # At least the weights, their gradients and AdamW's two averages: 16 bytes per parameter.
    assert measured["peak_memory_mib"] > 16 * 469688 / 2**20
    with table.open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["test_vit", "test_resnet"]
    assert "failed" in captured.out


@pytest.mark.parametrize(
    ("models", "says"),
    [("nat_tinny", "did you mean nat_tiny"), ("nothing_*", "no model matches"), (" , ", "give at least one value")],
)
def test_throughput_names_unknown_models_before_it_measures(capsys, models, says):
    assert run(main, ["throughput", "--models", models]) != 0
    assert says in error_line(capsys)


def test_macs_count_fused_attention():
    fused, plain = (create_model("test_vit", img_size=64).eval() for _ in range(2))
    for block in plain.blocks:
        block.attn.fused_attn = False  # two matrix products, which are counted anywhere
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(torch.zeros(1, 3, 64, 64))
    assert fused.blocks[0].attn.fused_attn
    assert count_macs(fused, (3, 64, 64)) == counter.get_total_flops() // 2


def test_macs_of_nat_match_the_paper():
    # Hassani et al., 2023, table 1: NAT-Mini, 2.7 GFLOPs at 224².
    with torch.device("meta"):
        model = create_model("nat_mini")
    assert count_macs(model, (3, 224, 224)) / 1e9 == pytest.approx(2.7, abs=0.05)


def test_inference_option_chooses_branches_of_dcal_and_rollout_draws_them(tmp_path, checkpoint, colour_folder, capsys):
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = create_model("dcal_vit_pico", **options).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    argv = ["--model", "dcal_vit_pico", "--model_kwargs", json.dumps(options), "--checkpoint", tmp_path / "weights.pth"]
    argv += ["--data.root", colour_folder, "--output", tmp_path / "r.json"]
    data = ImageClassificationData(
        root=str(colour_folder), img_size=32, mean=[0.5] * 3, std=[0.5] * 3, crop_pct=1.0, batch_size=9
    )
    data.setup("validate")
    batch = next(iter(data.val_dataloader())).to("cpu")
    branches = model.forward_branches(batch.image)
    for inference, names in (("combined", ("sa", "glca")), ("sa", ("sa",))):
        assert classify(*argv, "--inference", inference, "--rollout", tmp_path / "drawn", "--num_examples", "2") == 0
        result = json.loads((tmp_path / "r.json").read_text())
        share = sum(branches[name].logits.softmax(1) for name in names)
        assert result["inference"] == inference
        assert result["top1"] == (share.argmax(1) == batch.target).sum().item() / 9
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2
    capsys.readouterr()
    assert classify("--checkpoint", checkpoint, "--data.root", colour_folder, "--inference", "sa") == 1
    assert "test_resnet has one branch" in error_line(capsys)
