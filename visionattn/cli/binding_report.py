"""What a run of eval.py binding leaves: results in files, as a table, and as an image of accuracy against depth."""

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from visionattn.cli.report import print_table, write_csv, write_json
from visionattn.words import counted

RATES = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "auc": "AUC"}
"""What is told of a probe, with its heading."""


class BindingReport:
    """Results so far; what is given to it is in the files at once.

    Attributes:
        rows: one for each model, seed, layer and probe.
        models: one for each model and seed.
        interventions: one for each change of tokens.
        attention: one for each layer whose scores were correlated with attention.
    """

    def __init__(self, output: Path | None, csv: Path | None, plot: Path | None, settings: Mapping[str, Any]) -> None:
        """Says where results go.

        Args:
            output: JSON file.
            csv: CSV file.
            plot: image.
            settings: options and provenance, for the JSON file.
        """
        self.output, self.csv, self.plot, self.settings = output, csv, plot, dict(settings)
        self.rows: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = []
        self.interventions: list[dict[str, Any]] = []
        self.attention: list[dict[str, Any]] = []

    def add(self, model: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes up a model and what probes found of it, and writes the files."""
        self.models.append(dict(model))
        self.rows += map(dict, rows)
        self._write()

    def add_experiments(
        self, interventions: Sequence[Mapping[str, Any]], attention: Sequence[Mapping[str, Any]]
    ) -> None:
        """Takes up what became of segmentation, and correlations, and writes the files."""
        self.interventions += map(dict, interventions)
        self.attention += map(dict, attention)
        self._write()

    def _write(self) -> None:
        if self.output:
            parts = {"models": self.models, "interventions": self.interventions, "attention": self.attention}
            write_json({"results": self.rows, **parts, **self.settings}, self.output)
        if self.csv:
            write_csv(self.rows, self.csv)
        if self.plot:
            self._draw(self.plot)

    def print(self) -> None:
        """Prints, for each model, the best layer of each probe, and what experiments found."""
        for model, rows in _by(self.rows, label):
            cells = [_best_cells(found, probe) for probe, found in _by(rows, itemgetter("probe"))]
            print_table(cells, title=self._title(model, rows))
            interventions = [row for row in self.interventions if label(row) == model]
            key = itemgetter("layer", "change", "amount", "subspace")
            if changed := [_changed_cells(same) for _, same in _by(interventions, key)]:
                print_table(changed, title=f"Segmentation by the last layer of {model}")
            attention = [row for row in self.attention if label(row) == model]
            if layers := [_attention_cells(same) for _, same in _by(attention, itemgetter("layer"))]:
                print_table(layers, title=f"Scores of a layer and attention in the next block of {model}")
        for found in self.models:
            if found["num_unreadable"]:
                print(f"unreadable scenes left out: {found['num_unreadable']}, the first: {found['unreadable'][0]}")

    def _title(self, model: str, rows: Sequence[Mapping[str, Any]]) -> str:
        first = rows[0]
        sizes = next(f"{m['num_train']:,} + {m['num_val']:,} scenes" for m in self.models if label(m) == model)
        data = Path(first["root"]).name if first["root"] else first["dataset"]
        seeds = len({row["seed"] for row in rows})
        shares = (first[f"{part}share_different"] for part in ("", "foreground_"))
        chance, on_objects = ("–" if share is None else f"{share:.1%}" for share in shares)
        return (
            f"{model} on {data}, {sizes}, {counted(seeds, 'seed')}; {chance} of pairs are of two "
            f"segments, {on_objects} of those on objects. Layers of the best accuracy on val"
        )

    def _draw(self, path: Path) -> None:
        from visionattn.viz.binding import DepthCurve, save_depth_curves

        curves = []
        for model, of_model in _by(self.rows, label):
            for probe, found in _by(of_model, itemgetter("probe")):
                layers = [rows for _, rows in _by(found, itemgetter("layer"))]
                points = {rate: [[row[rate] for row in rows] for rows in layers] for rate in RATES}
                curves.append(
                    DepthCurve(
                        model,
                        probe,
                        [rows[0]["depth"] for rows in layers],
                        {rate: [_summary(values)[0] for values in of_layers] for rate, of_layers in points.items()},
                        {rate: [_summary(values)[1] for values in of_layers] for rate, of_layers in points.items()},
                    )
                )
        share = self.rows[0]["share_different"] or 0.0
        save_depth_curves(curves, max(share, 1 - share), path)


def label(row: Mapping[str, Any]) -> str:
    """A model with where its weights come from."""
    return f"{row['model']} ({row['checkpoint'] or row['weights']})"


def best_layer(rows: Sequence[Mapping[str, Any]], probe: str) -> int:
    """The layer whose probe has the best accuracy, on the mean over seeds; the first of equals.

    Args:
        rows: of one model.
        probe: its name.
    """
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["probe"] == probe:
            found.setdefault(row["layer"], []).append(row["accuracy"] or 0.0)
    return max(found, key=lambda layer: sum(found[layer]) / len(found[layer]))


def _by(rows: Sequence[Mapping[str, Any]], key: Any) -> Iterator[tuple[Any, list[Mapping[str, Any]]]]:
    """Rows of the same key together, in the order in which keys come."""
    keys = [key(row) for row in rows]
    for number, value in enumerate(keys):
        if value not in keys[:number]:
            yield value, [row for row, other in zip(rows, keys, strict=True) if other == value]


def _best_cells(rows: Sequence[Mapping[str, Any]], probe: str) -> dict[str, str]:
    layer = best_layer(rows, probe)
    best = [row for row in rows if row["layer"] == layer]
    return {
        "probe": probe,
        "layer": str(layer),
        "depth": f"{best[0]['depth']:.2f}",
        **{
            f"{heading}{name}": _percent([row[prefix + rate] for row in best])
            for heading, prefix in (("", ""), ("objects: ", "foreground_"))
            for rate, name in RATES.items()
        },
        "params": f"{best[0]['num_parameters']:,}",
    }


def _changed_cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    first = rows[0]
    return {
        "change": f"{first['change']} {first['amount']:g}" if first["layer"] is not None else first["change"],
        "after layer": "–" if first["layer"] is None else str(first["layer"]),
        "subspace": first["subspace"],
        "semantic mIoU": _percent([row["semantic_miou"] for row in rows]),
        "instance mIoU": _percent([row["instance_miou"] for row in rows]),
    }


def _attention_cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {"layer": str(rows[0]["layer"]), "Pearson's r": _mean([row["correlation"] for row in rows], 1, 3)}


def _percent(values: Sequence[float | None]) -> str:
    return _mean(values, 100, 2)


def _mean(values: Sequence[float | None], scale: float, digits: int) -> str:
    """Mean and, of several, standard deviation."""
    mean, deviation = _summary(values)
    if mean is None:
        return "–"
    spread = f" ± {scale * deviation:.{digits}f}" if deviation is not None else ""
    return f"{scale * mean:.{digits}f}{spread}"


def _summary(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the sample; None where there are too few values."""
    known = [value for value in values if value is not None]
    return (fmean(known) if known else None), (stdev(known) if len(known) > 1 else None)
