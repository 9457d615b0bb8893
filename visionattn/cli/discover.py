"""``eval.py discover``: agreement of slots with the objects of scenes."""

from pathlib import Path

from visionattn.checks import check_range
from visionattn.cli.errors import UsageError
from visionattn.cli.progress import show_progress
from visionattn.cli.report import print_table, print_unreadable
from visionattn.evaluation.as_trained import SceneOptions
from visionattn.evaluation.device import Precision, resolve_device
from visionattn.evaluation.discovery import AS_TRAINED, DiscoveryResult, evaluate_slots
from visionattn.evaluation.drawing import save_slot_sheet
from visionattn.output import check_folder, check_writable, write_csv, write_json
from visionattn.training import Weights
from visionattn_kernels.provenance import provenance

LABELS = {"fg_ari": "FG-ARI", "ari": "ARI", "mbo_i": "mBO_i", "mbo_c": "mBO_c", "corloc": "CorLoc"}


def discover(
    checkpoint: Path,
    weights: Weights = "average",
    data: SceneOptions = AS_TRAINED,
    device: str = "auto",
    precision: Precision = "32-true",
    output: Path | None = None,
    csv: Path | None = None,
    examples: Path | None = None,
    num_examples: int = 16,
) -> None:
    """Evaluate how well slots find the objects of scenes, beside a grid of as many blocks and random segments.

    Args:
        checkpoint: file that train.py --task object_discovery wrote.
        weights: for a checkpoint that holds a moving average: the average or the raw weights.
        data: which scenes.
        device: auto, cpu, cuda, cuda:1, …
        precision: as --trainer.precision.
        output: JSON file for the results.
        csv: CSV file for the table.
        examples: folder for slots.png, a sheet of scenes, their true segments and their slots.
        num_examples: number of scenes on it, evenly spaced.
    """
    check_writable(json=output, csv=csv)
    check_folder(examples)
    check_range("num_examples", num_examples, 1, error=UsageError)
    resolved = resolve_device(device)
    result = evaluate_slots(
        checkpoint, data, weights=weights, device=resolved, precision=precision, progress=show_progress
    )
    if output:
        write_json({**result.to_dict(), **provenance(resolved)}, output)
    if csv:
        write_csv(result.rows, csv)
    if examples:
        save_slot_sheet(examples / "slots.png", result, num_examples)
    _print(result)


def _print(result: DiscoveryResult) -> None:
    names = {"slots": f"{result.num_slots} slots", "blocks": "a grid of as many blocks", "random": "at random"}
    print_table(
        [
            {
                "segments": names[row["segments"]],
                **{label: "–" if row[key] is None else f"{row[key]:.2%}" for key, label in LABELS.items()},
            }
            for row in result.rows
        ],
        f"{result.method} on {result.model}, {result.num_images:,} scenes of {result.dataset}",
    )
    print_unreadable(result, "scenes")
