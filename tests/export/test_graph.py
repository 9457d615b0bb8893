"""ONNX files and programs of `torch.export`: the outputs of the network, with operators of torch alone."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from tests.export.conftest import NARROW_NAT, Save
from visionattn.cli.errors import run
from visionattn.cli.evaluate import main as evaluate
from visionattn.cli.export import main
from visionattn.export.graph import Difference, compare, save_program
from visionattn.export.network import Network
from visionattn.layers.prepared import frozen_weights
from visionattn.training import describe_model, load_checkpoint

VIT = {"depth": 3, "embed_dim": 24, "num_heads": 2}
NAT = {"embed_dim": 16, "depths": [1], "num_heads": [2], "kernel_size": 3}
SHALLOW = {"embed_dims": [12], "slow_depths": [2]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "nat": ("nat_pico", NARROW_NAT),
    "dinat-patches": ("dinat_s_tiny", {**NARROW_NAT, "dilations": [2, 1, 1], "legacy_pad": True}),
    "isotropic": ("dinat_isotropic_small", {"depth": 2, "embed_dim": 24, "num_heads": 2}),
    "vittt": ("vittt_tiny", {"depth": 2, "embed_dim": 24, "num_heads": 2}),
    **{
        f"mixer-{mixer}": ("iso_nano", {"embed_dim": 16, "depth": 1, "mixer": mixer})
        for mixer in ("full", "core", "power", "parallax", "taylor", "elu", "routing", "blocks")
    },
    "halo": ("halo_pico", {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 16, "block_size": 4, "halo_size": 1}),
    "halo-pico": ("halo_pico", {}),
    "dcal-avg": ("dcal_vit_pico", {**VIT, "glca_pool": "avg"}),
    "terminator-small": ("terminator_pico", {**SHALLOW, "img_size": 8, "local_sizes": [3, 0, 0, 0]}),
    "terminator": ("terminator_pico", {"img_size": 16}),
    "terminator-1d": ("terminator_1d_pico", {**SHALLOW, "img_size": 30}),
    "vit": ("vit_pico_patch4_32", VIT),
    "slot-vit": ("slot_vit_pico_patch4_32", VIT),
    "slot-cnn": ("slot_cnn_pico", {"embed_dims": [8, 8, 8, 8]}),
    "timm": ("test_convnext", {}),
}
QUICK = ("halo", "dcal-avg", "terminator-small")
each_family = pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)


def build(name: str, **kwargs: Any) -> Network:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **kwargs).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() < 2:  # biases and scales that start at 0 would hide what they do
            parameter.add_(0.1 * torch.randn_like(parameter))
    spec = describe_model(model, name, **kwargs)
    if "1d" in name:
        spec.preprocessing["input_size"] = (1, 1, kwargs["img_size"])
    elif not getattr(model, "img_size", None) and name != "test_convnext":
        spec.preprocessing["input_size"] = (3, 32, 32)
    return Network(model, spec, "random")


def export(*words: object) -> None:
    assert run(main, [*map(str, words)]) == 0


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(main, [*map(str, words)]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """Return the namespaces of the operators of a graph."""
    return {node.target.namespace for node in program.graph.nodes if hasattr(node.target, "namespace")}


@each_family
def test_program_gives_the_output_of_the_network(family: str, tmp_path: Path) -> None:
    name, kwargs = FAMILIES[family]
    network = build(name, **kwargs)
    difference = save_program(network, tmp_path / "model.pt2", dynamic_batch=True, tolerance=1e-4)
    program = torch.export.load(tmp_path / "model.pt2")
    assert operators(program) == {"aten"}
    shapes = [node.meta["val"].shape for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert max(map(len, shapes)) <= 7  # OpenVINO's sums of tensors with 8 axes, in a batch of any size, were wrong
    images = torch.randn(5, *network.input_size)
    expected = network.module(images)
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)
    assert difference.absolute <= 1e-4
    assert expected.std() > 1e-3  # there is something to compare
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_gives_the_output_of_the_network(family: str, tmp_path: Path) -> None:
    from visionattn.export.graph import save_onnx

    name, kwargs = FAMILIES[family]
    network = build(name, **kwargs)
    difference = save_onnx(network, tmp_path / "model.onnx", dynamic_batch=True, opset=None, tolerance=1e-4)
    assert difference.absolute <= 1e-4
    assert {opset.domain for opset in onnx.load(tmp_path / "model.onnx").opset_import} == {""}


def test_onnx_of_a_checkpoint_gives_its_output(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of five channels: `docs/export.md` writes one of three."""
    statistics = {"mean": (0.1, 0.2, 0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3, 0.4, 0.5)}
    options = {"model_kwargs": {**NAT, "in_chans": 5}, "preprocessing": {"input_size": (5, 32, 32), **statistics}}
    path, file = save("nat_pico", names=["ann", "bob", "cléo"], **options), tmp_path / "nat.onnx"
    export("onnx", "--checkpoint", path, "--output", file)
    assert re.search(r"5×32×32; onnxruntime differs by \d\.\de-\d\d \(relative", capsys.readouterr().out)
    model, _ = load_checkpoint(path)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", ["batch", 5, 32, 32], "tensor(float)")
    assert (logits.name, logits.shape) == ("logits", ["batch", 3])
    images = torch.randn(4, 5, 32, 32)
    (found,) = session.run(None, {"image": images.numpy()})
    np.testing.assert_allclose(found, model(images).detach().numpy(), rtol=1e-4, atol=1e-4)

    about = json.loads(Path(f"{file}.json").read_text(encoding="utf-8"))
    assert about["class_names"] == ["ann", "bob", "cléo"]
    assert about["preprocessing"] == {
        "input_size": [5, 32, 32],
        "network_input": [5, 32, 32],
        "mean": [*statistics["mean"]],
        "std": [*statistics["std"]],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    assert about["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert about["max_difference"]["absolute"] <= 1e-4
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["class_names"]) == about["class_names"]
    assert json.loads(held["preprocessing"]) == about["preprocessing"]

    # No mask of a map, no traces of this machine: little beyond the weights.
    assert file.stat().st_size < 4 * sum(parameter.numel() for parameter in model.parameters()) + 250_000
    assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()


def test_program_holds_no_path_of_this_machine(save: Save, tmp_path: Path) -> None:
    path, file = (
        save("nat_pico", num_classes=0, model_kwargs=NAT, task="reid", names=["ann"]),
        tmp_path / "n.pt2",
    )
    export("program", "--checkpoint", path, "--output", file, "--dynamic_batch", "false", "--img_size", "[48,16]")
    program = torch.export.load(file)
    assert program.module()(torch.randn(1, 3, 48, 16)).shape == (1, 16)
    with zipfile.ZipFile(file) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert str(Path(__file__).parents[2]).encode() not in content
    about = json.loads(Path(f"{file}.json").read_text())
    assert (about["output"], about["class_names"], about["task"]) == ("features", [], "reid")
    assert about["preprocessing"]["network_input"] == [3, 48, 16]


@pytest.mark.slow
def test_unavailable_opset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("onnx", "--model", "nat_pico", "--model_kwargs", json.dumps(NAT), "--output", tmp_path / "n.onnx")
    assert "--opset 3 cannot be had for nat_pico: torch writes" in refusal(capsys, *words, "--opset", 3)
    export(*words, "--opset", 21)
    (opset,) = onnx.load(tmp_path / "n.onnx").opset_import
    assert opset.version == 21


class Fickle(nn.Module):
    """A network that computes something else when it is traced."""

    num_classes = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + (0.5 if torch.compiler.is_exporting() else 0)


def fickle() -> Network:
    model = timm.create_model("test_resnet", num_classes=3)
    return Network(Fickle(), describe_model(model, "test_resnet"), "random")


def test_differing_graph_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_text("an earlier one")
    with pytest.raises(ValueError, match=r"m\.pt2: what was exported differs from test_resnet by 5\.0e-01 \(rel"):
        save_program(fickle(), tmp_path / "m.pt2", dynamic_batch=True, tolerance=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]
    assert (tmp_path / "m.pt2").read_text() == "an earlier one"
    assert save_program(fickle(), tmp_path / "m.pt2", True, tolerance=1e3).absolute == pytest.approx(0.5)


def test_differences_of_outputs_are_relative_and_absolute() -> None:
    network = Network(nn.Flatten(), fickle().spec, "random")
    assert compare(network, nn.Flatten(), (1, 3)) == Difference(0, 0)
    found = compare(network, lambda x: x.flatten(1) * 1.5, (1, 3))
    assert found.relative == pytest.approx(0.5)
    assert found.absolute == pytest.approx(0.5 * max(float(network.images(n).abs().max()) for n in (1, 3)))
    for wrong in (lambda x: x.flatten(1) * torch.nan, lambda x: x, lambda x: x.flatten(1) / 0):
        assert compare(network, wrong, (1,)).relative == float("inf")


def test_prepared_tensors_are_data_of_the_graph() -> None:
    network = build("terminator_1d_pico", **FAMILIES["terminator-1d"][1])
    images = network.images(2)
    expected = network.answer(images)
    with torch.no_grad(), frozen_weights(network.module):
        assert torch.equal(network.module(images), expected)
        program = torch.export.export(network.module, (images,), strict=False)
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    assert not any("filters" in name for name in used)


def test_probe_is_exported_with_its_backbone(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save("vit_pico_patch4_32", model_kwargs=VIT)
    words = f"probe --checkpoint {path} --data.name digits --heads ep_2 --training.epochs 1 --export heads --device cpu"
    assert run(evaluate, [*words.split(), "--data.num_workers", "0", "--features.cache", "cache"]) == 0
    (head,) = Path("heads").glob("*ep_2.json")
    export("program", "--probe", head, "--output", "probe.pt2")
    about = json.loads(Path("probe.pt2.json").read_text())
    assert about["class_names"] == [str(digit) for digit in range(10)]
    from visionattn import load_probe

    images = torch.randn(3, 3, 32, 32)
    found = torch.export.load("probe.pt2").module()(images)
    torch.testing.assert_close(found, load_probe(head)(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["onnx", "--output", "x.pt2"], "--output x.pt2 must end in .onnx"),
        (["program", "--output", "x.onnx"], "--output x.onnx must end in .pt2"),
        (["program", "--output", "x.pt2"], "nothing to export: give --checkpoint FILE"),
        (
            ["program", "--output", "x.pt2", "--probe", "p.json", "--model", "nat_pico"],
            "--probe names backbone and weights",
        ),
        (
            ["program", "--output", "x.pt2", "--probe", "p.json", "--img_size", "9"],
            "--img_size: a probe takes images of",
        ),
        (["program", "--output", "x.pt2", "--probe", "p.json"], "no exported head at p.json"),
        (["program", "--output", "x.pt2", "--model", "nat_pico", "--inference", "sa"], "nat_pico has one branch"),
        (["program", "--output", "x.pt2", "--model", "nat_picco"], "unknown model 'nat_picco': did you mean nat_pico"),
        (
            ["program", "--output", "x.pt2", "--model", "terminator_pico", "--img_size", "[9,8]"],
            "terminator_pico cannot",
        ),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_export_mistakes_are_named(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, *words).startswith(f"error: {says}")
    assert list(tmp_path.iterdir()) == []


def test_missing_export_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("visionattn.export.graph.find_spec", lambda name: None if name == "onnxscript" else object())
    message = refusal(capsys, "onnx", "--model", "nat_pico", "--output", tmp_path / "x.onnx")
    assert message == 'error: ONNX needs onnxscript, not installed here: pip install "visionattn[export]"'
