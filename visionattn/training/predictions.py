"""Predictions as a CSV or JSON file, written batch by batch."""

import csv
import json
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import Callback, LightningModule, Trainer

COLUMNS = ("file", "class", "probability")


class PredictionWriter(Callback):
    """Write a file name, a class and a probability for each image: columns of a CSV file, or keys of JSON objects.

    Args:
        path: the file, JSON if it ends in ``.json``. Other processes write files with their rank in the name.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.is_json = path, path.suffix.lower() == ".json"
        self.count = 0
        self.file: IO[str] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file."""
        if trainer.global_rank:
            self.path = self.path.with_stem(f"{self.path.stem}.rank{trainer.global_rank}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("w", encoding="utf-8", newline="")
        if self.is_json:
            self.file.write("[")
        else:
            csv.writer(self.file).writerow(COLUMNS)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Add a batch."""
        assert self.file is not None
        if not self.is_json:
            csv.writer(self.file).writerows((name, label, f"{share:.6f}") for name, label, share in outputs)
            self.count += len(outputs)
            return
        for name, label, share in outputs:
            row = dict(zip(COLUMNS, (name, label, round(share, 6)), strict=True))
            self.file.write((",\n " if self.count else "\n ") + json.dumps(row, ensure_ascii=False))
            self.count += 1

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.write("\n]\n" if self.is_json else "")
            self.file.close()
