"""Tables and figures of result files from a GPU, of which none exists yet: rows are made up here, in their form."""

import pytest
import torch

CUDA = torch.device("cuda")
ORIGIN = {
    "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    "hardware": {"device": "cuda", "name": "a card", "memory_gib": 80.0},
    "command": "attention.py --device cuda",
    "git_revision": "0123",
}


@pytest.fixture
def write(bench, tmp_path):
    """Write rows and their origin as a script does on a GPU."""

    def write(name, columns, rows):
        report = bench.report.Report(tmp_path / f"{name}.csv", torch.device("cpu"), columns)
        report.origin, report.common = ORIGIN, {"device": "cuda", "hardware": "a card", "threads": ""}
        report.add(rows)
        return tmp_path / f"{name}.csv"

    return write


def attention_rows(bench, only, ratios):
    """Make rows of all problems that a name chooses: every peer takes its ratio, and none has what it cannot run."""
    for problem in bench.attention.choose_problems(only, CUDA, None, False):
        for direction in bench.problems.DIRECTIONS:
            for contender, ratio in {"visionattn": 1.0, **ratios}.items():
                if problem.rpb and contender not in ("visionattn", "flex", "gather"):
                    continue
                row = {"dtype": "bfloat16", "problem": problem.name, "direction": direction, "contender": contender}
                ours = {"fraction_of_floor": 0.5} if contender == "visionattn" else {}
                yield {**row, "median_ms": 2 * ratio, "ratio_to_ours": ratio, "peak_mb": 3.0, **ours}


def test_attention_tables_have_the_peers_of_a_gpu(bench, write):
    columns = bench.attention.COLUMNS
    nat = write(
        "attention-cuda", columns, attention_rows(bench, "nat-tiny", {"gather": 9.0, "sdpa-flash": 2.0, "natten": 1.25})
    )
    text = bench.table.render(nat)
    assert text.startswith("a card; torch 2.11.0, triton 3.6.0. `python -m kernels.bench.attention --device cuda`")
    assert "| stages 1–3, d 1 | forward+backward | 9.0× | 2.0× | 1.2× |" in text
    assert "| stages 1–3, d 1, rpb | forward+backward | 9.0× | – | – |" in text
    flex = write("attention-flex-cuda", columns, attention_rows(bench, "nat-tiny-1,d1 rpb", {"flex": 1.6}))
    assert "| stages 1–3, d 1, rpb | forward+backward | 1.6× |" in bench.table.render(flex)
    large = bench.table.render(
        write("attention-na2d-cuda", columns, attention_rows(bench, "na2d,na1d", {"sdpa-cudnn": 5.0}))
    )
    assert "| na2d B1 256x256 h24 c128 w80 | forward | 2 | 50% | 5.0× | 3 |" in large
    assert "| na2d B1 256x256 h24 c128 w80 | NATTEN hopper-fna | 16.2 ms | H100 |" in large


def test_table_of_compiled_models(bench, write):
    row = {"dtype": "bfloat16", "channels_last": False, "model": "nat_tiny", "batch": 128, "direction": "inference"}
    row |= {"contender": "visionattn", "peak_mb": 100.0, "ratio_to_ours": 1.0}
    rows = [{**row, "compile": compiled, "images_per_second": speed} for compiled, speed in ((False, 5e3), (True, 7e3))]
    text = bench.table.render(write("gathered-compiled-cuda", bench.gathered.COLUMNS, rows))
    assert "| nat_tiny B128 | inference | 5,000 | – | – | 100 | naive kernel 2167, fused kernel 2772 (A100" in text
    assert "| nat_tiny B128, compiled | inference | 7,000 | – |" in text


def test_figures_of_a_gpu_are_drawn(bench, write, tmp_path):
    columns = bench.attention.COLUMNS
    write("attention-cuda", columns, attention_rows(bench, "nat-tiny-1", {"flex": 1.6, "sdpa-cudnn": 2.0}))
    write("attention-untuned-cuda", columns, attention_rows(bench, "rpb", {}))
    assert bench.plot.main(["--results", str(tmp_path)]) == 0
    assert (tmp_path / "attention-cuda.png").exists()
    assert not (tmp_path / "attention-untuned-cuda.png").exists()  # it has no peers
