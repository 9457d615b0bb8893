"""The benchmark scripts: what they refuse to time, what they write, and the tables that they make of it."""

import json
import math

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results(bench, tmp_path_factory):
    """Result files of a quick run of every script."""
    folder = tmp_path_factory.mktemp("results")
    common = ["--quick", "--threads", "1", "--repeats", "1"]
    names = ("attention", "backends", "memory", "gathered", "halonet", "terminator")
    attention, backends, memory, gathered, halonet, terminator = (
        ["--output", str(folder / f"{name}-cpu.csv")] for name in names
    )
    assert bench.attention.main([*common, *attention, "--peers", "gather,sdpa-full,timm"]) == 0
    assert bench.attention.main([*common, *backends, "--backend", "tiled,reference", "--only", "k3 d4"]) == 0
    assert bench.memory.main([*common, *memory, "--backend", "tiled,reference"]) == 0
    assert bench.gathered.main([*common, *gathered]) == 0
    assert bench.halonet.main([*common, *halonet]) == 0
    assert bench.terminator.main([*common, *terminator]) == 0
    return folder


@pytest.fixture(scope="module")
def surroundings(bench, results, monkeypatch_module):
    """Result files of what surrounds kernels: loops in this process, commands that do nothing."""
    common = ["--quick", "--threads", "1", "--repeats", "1", "--output"]
    monkeypatch_module.setattr(bench.training, "train", lambda name, task: run_loop(bench, name, task))
    monkeypatch_module.setattr(bench.startup, "COMMANDS", {name: ["-c", "pass"] for name in bench.startup.COMMANDS})
    for name in ("training", "loader", "startup"):
        assert getattr(bench, name).main([*common, str(results / f"{name}-cpu.csv")]) == 0
    return results


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        yield patch


def run_loop(bench, name, task):
    record = bench.loops.Record()
    bench.loops.LOOPS[name](task, record)
    return record


def test_attention_rows(bench, results):
    rows = bench.report.read_rows(results / "attention-cpu.csv")
    assert list(rows[0]) == ["device", "hardware", "threads", *bench.attention.COLUMNS]
    found = {(row["problem"].split()[0], row["contender"], row["direction"]) for row in rows}
    peers = {"nat-tiny-1": ("visionattn", "gather", "sdpa-full"), "halonet-layer": ("visionattn", "timm")}
    directions = ("forward", "forward+backward")
    assert found == {(p, c, d) for p, names in peers.items() for c in names for d in directions}
    medians = {(row["problem"], row["contender"], row["direction"]): float(row["median_ms"]) for row in rows}
    for row in rows:
        ours = row["contender"] == "visionattn"
        ratio = float(row["median_ms"]) / medians[row["problem"], "visionattn", row["direction"]]
        assert float(row["ratio_to_ours"]) == pytest.approx(ratio, rel=2e-3)
        assert bool(row["fraction_of_floor"]) == ours
        assert float(row["median_ms"]) > 0
        assert float(row["peak_mb"]) > 0


def test_backends_are_timed_beside_the_automatic_choice(bench, results):
    rows = bench.report.read_rows(results / "backends-cpu.csv")
    assert {row["contender"] for row in rows} == {"visionattn", "tiled", "reference"}
    assert all(row["fraction_of_floor"] for row in rows)


@pytest.mark.parametrize("what", ["attention", "backends", "memory", "gathered", "halonet"])
def test_origin_stands_beside_the_rows(results, what):
    origin = json.loads((results / f"{what}-cpu.json").read_text())
    assert set(origin) >= {"versions", "hardware", "command", "git_revision"}
    assert origin["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_absent_package_is_named_so(bench):
    assert bench.report.package_version("no-such-package-anywhere") == "absent"


def test_memory_of_tiled_grows_with_the_map_not_its_square(bench, results):
    rows = bench.report.read_rows(results / "memory-cpu.csv")
    peak = {(row["contender"], row["map"]): float(row["peak_mb"]) for row in rows}
    small, large = bench.memory.QUICK_MAPS
    growth = {name: peak[name, f"{large}x{large}"] / peak[name, f"{small}x{small}"] for name in ("tiled", "reference")}
    assert large == 2 * small
    assert 3 < growth["tiled"] < 6
    assert growth["reference"] > 10


def test_peak_counts_memory_held_at_once(bench):
    def one_after_the_other():
        for _ in range(5):
            torch.ones(1 << 18)

    def together():
        return [torch.ones(1 << 18) for _ in range(5)]

    assert bench.measure.peak_bytes(one_after_the_other, CPU) == pytest.approx(1 << 20, rel=0.1)
    assert bench.measure.peak_bytes(together, CPU) == pytest.approx(5 << 20, rel=0.1)


def test_rows_of_gathered_twins(bench, results):
    rows = bench.report.read_rows(results / "gathered-cpu.csv")
    assert list(rows[0]) == ["device", "hardware", "threads", *bench.gathered.COLUMNS]
    found = [(row["model"], row["direction"], row["contender"]) for row in rows]
    directions, contenders = ("inference", "training"), ("visionattn", "gather")
    assert found == [("nat_pico", d, c) for d in directions for c in contenders]
    for row in rows:
        assert float(row["images_per_second"]) == pytest.approx(2e3 / float(row["median_ms"]), rel=1e-2)


def test_models_that_disagree_are_not_timed(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench.gathered, "gather", lambda *args: lambda q, k, v, *rpb: v)
    assert bench.gathered.main(["--quick", "--threads", "1", "--repeats", "1"]) == 1
    assert "logits of nat_pico differ" in capsys.readouterr().err


def test_model_that_fails_does_not_stop_the_others(bench, tmp_path, monkeypatch, capsys):
    real = bench.gathered.training_step

    def make_step(model, *args):
        return (lambda: 1 / 0) if hasattr(model, "forward_branches") else real(model, *args)

    monkeypatch.setattr(bench.gathered, "training_step", make_step)
    output = tmp_path / "gathered-cpu.csv"
    arguments = ["--quick", "--threads", "1", "--repeats", "1", "--alone", "--output", str(output)]
    assert bench.gathered.main([*arguments, "--models", "dcal_vit_pico,nat_pico"]) == 1
    rows = [(row["model"], row["direction"]) for row in bench.report.read_rows(output)]
    assert rows == [("dcal_vit_pico", "inference"), ("nat_pico", "inference"), ("nat_pico", "training")]
    assert "error: dcal_vit_pico, training, fails: division by zero" in capsys.readouterr().err


def test_halonet_rows(bench, results):
    rows = bench.report.read_rows(results / "halonet-cpu.csv")
    assert list(rows[0]) == ["device", "hardware", "threads", *bench.halonet.COLUMNS]
    parts = {(row["part"].partition(" ")[0], row["direction"]) for row in rows}
    layers = {"stages.2.1.self_attn", "stages.3.0.self_attn", "stages.3.1.self_attn"}
    directions = {"forward", "forward+backward"}
    wholes = {("network", "inference"), ("network", "training")}
    assert parts == {(layer, direction) for layer in layers for direction in directions} | wholes
    assert {row["contender"] for row in rows} == {"timm", "visionattn", "projections"}


def test_layers_that_disagree_are_not_timed(bench, monkeypatch, capsys):
    def spoil(module):
        for name, parameter in module.named_parameters():
            if name.endswith("kv.weight"):
                parameter.data *= 1.1
        return module

    monkeypatch.setattr(bench.halonet, "accelerate", spoil)
    monkeypatch.setattr(bench.halonet, "measure", lambda *args: pytest.fail("it was timed"))
    assert bench.halonet.main(["--quick", "--threads", "1", "--repeats", "1"]) == 1
    err = capsys.readouterr().err
    assert "stages.2.1.self_attn 256x16x16 stride 1 of halonet26t differs" in err
    assert "network of halonet26t differs" in err


def test_windows_that_disagree_are_not_timed(bench, tmp_path, monkeypatch, capsys):
    arguments = ["--quick", "--threads", "1", "--repeats", "1", "--output", str(tmp_path / "multiscale-cpu.csv")]
    assert bench.multiscale.main(arguments) == 0
    rows = bench.report.read_rows(tmp_path / "multiscale-cpu.csv")
    assert list(rows[0]) == ["device", "hardware", "threads", *bench.multiscale.COLUMNS]
    assert {row["contender"] for row in rows} == {"visionattn", "merged calls", "neighborhood 7x7"}
    monkeypatch.setattr(bench.multiscale, "multiscale_attention_2d", lambda q, k, v, *_, **__: q + k + v)
    assert bench.multiscale.main(arguments) == 1
    assert "error: implementations differ by" in capsys.readouterr().err


def test_other_parallax_is_not_timed(bench, tmp_path, monkeypatch, capsys):
    arguments = ["--quick", "--threads", "1", "--repeats", "1", "--output", str(tmp_path / "parallax-cpu.csv")]
    assert bench.parallax.main(arguments) == 0
    rows = bench.report.read_rows(tmp_path / "parallax-cpu.csv")
    assert list(rows[0]) == ["device", "hardware", "threads", *bench.parallax.COLUMNS]
    assert {row["contender"] for row in rows} == {"neighborhood attention", "parallax", "parallax, unfused"}
    monkeypatch.setattr(bench.parallax, "TOLERANCE", 1e-12)
    assert bench.parallax.main(arguments) == 1
    assert "not timed" in capsys.readouterr().err


def test_other_terminator_is_not_timed(bench, tmp_path, monkeypatch, capsys):
    output = tmp_path / "rows.csv"
    monkeypatch.setattr(bench.terminator_reference, "instance_standardize", lambda x: x)
    arguments = ["--quick", "--threads", "1", "--modes", "default", "--output", str(output)]
    assert bench.terminator.main(arguments) == 1
    assert not output.exists()
    assert "terminator_pico (default) differs" in capsys.readouterr().err


def test_training_loops_do_the_same_work(bench, surroundings):
    rows = bench.report.read_rows(surroundings / "training-cpu.csv")
    assert list(rows[0]) == ["device", "hardware", "threads", *bench.training.COLUMNS]
    assert [row["contender"] for row in rows] == ["visionattn", "plain loop", "timm"]
    for row in rows:
        assert float(row["images_per_second"]) == pytest.approx(4e3 / float(row["step_ms"]), rel=1e-2)


@pytest.mark.parametrize("spoil", ["images", "parameters", "losses"])
def test_other_loops_are_not_timed(bench, monkeypatch, capsys, spoil):
    def train(name, task):
        record = bench.loops.Record([float(i) for i in range(task.steps)], [2.3] * task.steps, [4] * task.steps, 7)
        if name == "timm":
            value = {"images": [4, 3], "parameters": 8, "losses": [1.0] * task.steps}[spoil]
            setattr(record, spoil, value)
        return record

    monkeypatch.setattr(bench.training, "train", train)
    monkeypatch.setattr(bench.training, "summarise", lambda *args: pytest.fail("it was timed"))
    assert bench.training.main(["--quick", "--threads", "1"]) == 1
    assert f"test_resnet: {spoil}" in capsys.readouterr().err


@pytest.mark.slow
def test_loops_run_in_processes_of_their_own(bench, tmp_path):
    bench.loops.write_digits(tmp_path, 60)
    task = bench.loops.Task(str(tmp_path), "test_resnet", 4, 12, 0, 1)
    for name in bench.loops.LOOPS:
        record = bench.training.train(name, task)
        assert record.images == [4] * 12
        assert record.first_step_s > 0
        assert record.peak_mb > 100


def test_loaders_give_the_same_images(bench, surroundings, monkeypatch, capsys):
    rows = bench.report.read_rows(surroundings / "loader-cpu.csv")
    assert [row["contender"] for row in rows] == ["visionattn", "visionattn, cache", "timm", "torchvision"]
    theirs = bench.loader.timm_loader
    monkeypatch.setattr(bench.loader, "timm_loader", lambda root, size, *rest: theirs(root, size + 1, *rest))
    assert bench.loader.main(["--quick", "--threads", "1"]) == 1
    assert "batches differ" in capsys.readouterr().err


def test_startup_rows(bench, surroundings):
    rows = bench.report.read_rows(surroundings / "startup-cpu.csv")
    assert [row["command"] for row in rows] == ["import timm", "import visionattn"]
    assert rows[0]["ratio_to_timm"] == "1"
    assert all(float(row["peak_mb"]) > 1 for row in rows)


def test_first_step_is_timed_in_a_process_of_its_own(bench, monkeypatch):
    monkeypatch.setattr(bench.startup, "train", lambda name, task: bench.loops.Record(first_step_s=2.0, peak_mb=3.0))
    task = bench.loops.Task("root", "test_resnet", 4, 1, 0, 1)
    assert list(bench.startup.FIRST_STEPS.values()) == list(bench.loops.LOOPS)
    for name in bench.startup.FIRST_STEPS:
        assert (bench.startup.seconds(name, task), bench.startup.peak_mb(name, task)) == (2.0, 3.0)


def test_commands_whose_start_is_measured_are_there(bench):
    scripts = {words[0] for words in bench.startup.COMMANDS.values()} - {"-c", "-m"}
    assert all((bench.startup.REPOSITORY / script).is_file() for script in scripts)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("training", ["--models", "resnet81"], "--models takes any of .*; did you mean 'resnet18'"),
        ("training", ["--steps", "0"], "--steps must be at least 1; got 0"),
        ("loader", ["--workers", "3"], "--workers takes any of 0, 2; got '3'"),
        ("training", ["--root", "no/such"], "--root must be a folder with train/CLASS and val/CLASS; got no/such"),
        ("loader", ["--size", "0"], "--size must be at least 1"),
        ("attention", ["--dtype", "float31"], "--dtype takes any of float32, .*'float31'; did you mean 'float32'"),
        ("attention", ["--backend", "tilde"], "--backend takes any of .*'tilde'; did you mean 'tiled'"),
        ("attention", ["--peers", "naten"], "--peers takes any of .*; did you mean 'natten'"),
        ("attention", ["--only", "nothing"], "--only 'nothing' is in no problem's name"),
        ("attention", ["--repeats", "0"], "--repeats must be at least 1; got 0"),
        ("memory", ["--output", "rows.json"], "--output must end with .csv; got rows.json"),
        ("memory", ["--backend", ","], "--backend names nothing"),
        ("gathered", ["--models", "nat_tinny"], "--models takes any of .*; did you mean 'nat_tiny'"),
        ("halonet", ["--dtype", "float32,float16"], "--dtype takes one of .* here; got float32,float16"),
        ("halonet", ["--models", "halonet26"], "--models takes any of .*; did you mean 'halonet26t'"),
        ("terminator", ["--modes", "default,compact"], "--modes takes any of .*; did you mean 'compat'"),
        ("multiscale", ["--sides", "15"], "--sides takes any of 14, 28, 56, 64; got '15'"),
        ("terminator", ["--batch", "0"], "--batch must be at least 1; got 0"),
        ("gathered", ["--batch", "0"], "--batch must be at least 1; got 0"),
        ("table", ["--results", "no/such/folder"], "no result file in no/such/folder for the table attention-cpu"),
    ],
)
def test_bad_input_is_one_line(bench, capsys, script, arguments, message):
    quick = [] if script == "table" else ["--quick"]
    assert bench.script.run(getattr(bench, script).main, [*quick, *arguments]) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(capsys.readouterr().err.removesuffix("\n"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("script", ["attention", "memory", "gathered", "halonet", "terminator"])
def test_missing_gpu_is_named(bench, capsys, script):
    assert bench.script.run(getattr(bench, script).main, ["--device", "cuda"]) == 1
    assert capsys.readouterr().err.startswith("error: --device cuda asks for a CUDA device and torch sees none")


def test_tables_of_the_readme_are_up_to_date(bench):
    assert bench.table.main(["--check"]) == 0


def test_outdated_table_is_noticed_and_rewritten(bench, surroundings, results, tmp_path):
    readme = tmp_path / "README.md"
    blocks = "\n".join(f"<!-- begin {path.stem} -->\n<!-- end {path.stem} -->" for path in results.glob("*.csv"))
    readme.write_text(f"before\n{blocks}\nafter\n")
    arguments = ["--readme", str(readme), "--results", str(results)]
    with pytest.raises(ValueError, match=r"tables of README\.md are out of date"):
        bench.table.main([*arguments, "--check"])
    assert bench.table.main(arguments) == 0
    assert bench.table.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| halonet-layer B2 16x16 h2 c8 b4 h1 | forward |" in text
    assert "| nat_pico B2 | training |" in text
    assert "| halonet26t B2 | network | training |" in text


def test_summary_is_the_geometric_mean_of_stages_1_to_3(bench):
    def row(stage, ratio, rest="d1"):
        problem = f"nat-tiny-{stage} B4 8x8 h2 c32 k7 {rest}"
        return {"problem": problem, "direction": "forward", "contender": "flex", "ratio_to_ours": str(ratio)}

    rows = [row(1, 2), row(2, 4), row(3, 27), row(4, 1000), row(1, 9, "d8"), row(1, 5, "d1 rpb")]
    assert bench.table.summary(rows, ["flex"]).splitlines()[2:] == [
        "| stage 1, d 1 | forward | 2.0× |",
        "| stages 1–3, d 1 | forward | 6.0× |",
        "| stages 1–3, d 1, rpb | forward | 5.0× |",
        "| stages 1–3, largest d | forward | 9.0× |",
    ]


def test_published_figures_stand_beside_ours_and_enter_no_ratio(bench):
    common = {"dtype": "bfloat16", "peak_mb": "1"}
    model = {"model": "nat_tiny", "batch": "128", "direction": "inference", "compile": "False", **common}
    ours = {"contender": "visionattn", "ratio_to_ours": "1"}
    rows = [
        {**model, **ours, "images_per_second": "600"},
        {**model, "contender": "gather", "images_per_second": "200", "ratio_to_ours": "3"},
        {**model, **ours, "images_per_second": "900", "compile": "True"},
    ]
    eager, compiled = bench.table.gathered_table(rows).splitlines()[-2:]
    assert eager.startswith("| nat_tiny B128 | inference | 600 | 200 | 3.0× | 1 |")
    assert compiled.startswith("| nat_tiny B128, compiled | inference | 900 | – | – | 1 |")
    cited = "naive kernel 2167, fused kernel 2772 (A100, float16; FNA, arXiv 2403.04690)"
    assert cited in eager
    assert cited in compiled
    attention = {"problem": "na2d B1 256x256 h24 c128 w80", "direction": "forward", **common}
    ours = {"contender": "visionattn", "median_ms": "20", "fraction_of_floor": "0.5", "ratio_to_ours": "1"}
    text = bench.table.attention_tables([{**attention, **ours}])
    assert "| na2d B1 256x256 h24 c128 w80 | forward | 20 | 50% | 1 |" in text
    assert "NATTEN hopper-fna | 16.2 ms | H100 |" in text


def test_published_figures_belong_to_problems_that_are_measured(bench):
    problems = bench.problems.attention_problems(torch.device("cuda"), None, False)
    names = [problem.name for problem in problems]
    assert len(set(names)) == len(names)
    models = [f"{name} B{bench.gathered.BATCH['cuda']}" for name in bench.gathered.MODELS["cuda"]]
    rows = bench.report.read_rows(bench.report.PUBLISHED)
    assert {row["problem"] for row in rows} <= {*names, *models}
    assert all(row["source"] and row["hardware"] for row in rows)


def test_exponent_of_a_power_law(bench):
    x = [1.0, 4.0, 9.0, 100.0]
    assert bench.report.fit_exponent(x, [3 * value**1.5 for value in x]) == pytest.approx(1.5)


def test_images_are_drawn(bench, results):
    assert bench.plot.main(["--results", str(results)]) == 0
    assert sorted(path.name for path in results.glob("*.png")) == ["attention-cpu.png", "memory-cpu.png"]


@pytest.mark.slow
def test_every_peer_that_is_installed_is_right(bench, tmp_path):
    output = tmp_path / "attention-cpu.csv"
    assert bench.attention.main(["--quick", "--repeats", "1", "--output", str(output)]) == 0
    found = {row["contender"] for row in bench.report.read_rows(output)}
    assert found >= {"visionattn", "gather", "flex", "sdpa-full", "timm"}


def test_nan_is_a_disagreement(bench):
    ones, nan = torch.ones(2), torch.tensor([1.0, torch.nan])
    assert bench.measure.largest_error([ones, 1.5 * ones], [ones, ones]) == 0.5
    assert math.isnan(bench.measure.largest_error([ones, nan], [ones, ones]))
