"""Speed, size and memory of models."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import timm
from timm.models import model_entrypoint

from visionattn.evaluation.timing import Conditions, measure
from visionattn.progress import ShowProgress, no_progress
from visionattn.training import check_model_name


@dataclass(frozen=True)
class ThroughputRow:
    """Speed, size and memory of a model; all but the name are None if it could not be measured.

    Attributes:
        model: its name.
        img_size: width of the input in pixels.
        img_height: height of the input in pixels.
        params_m: parameters in millions.
        gmacs: multiply-accumulates of matrix products, convolutions and attention for one image, in 10⁹.
        gmacs_missing_because: the reason, if they could not be counted.
        images_per_second: from the median of all steps.
        median_ms: of a step, in milliseconds.
        timed_runs: number of steps.
        peak_memory_mib: most memory at once, in MiB.
        error: the reason, if the model could not be measured.
    """

    model: str
    img_size: int | None = None
    img_height: int | None = None
    params_m: float | None = None
    gmacs: float | None = None
    gmacs_missing_because: str | None = None
    images_per_second: float | None = None
    median_ms: float | None = None
    timed_runs: int | None = None
    peak_memory_mib: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as ``eval.py throughput --output`` writes them."""
        return {"model": self.model, "error": self.error} if self.error else asdict(self)


def measure_throughput(
    models: str | Iterable[str],
    conditions: Conditions | None = None,
    *,
    held: Mapping[str, ThroughputRow] | None = None,
    after_each: Callable[[list[ThroughputRow]], object] | None = None,
    progress: ShowProgress = no_progress,
) -> list[ThroughputRow]:
    """Measure images/s, parameters, GMACs and peak memory of models.

    Each model has a process of its own, so that no model inherits another's memory, and so that one that fails or is
    killed does not lose the others.

    Args:
        models: names or patterns, see `expand_names`.
        conditions: size and number of images, device, precision, ….
        held: rows of an earlier run, which are taken as they are.
        after_each: called with the rows so far after each model.
        progress: shows which model is measured.

    Raises:
        ValueError: an unknown model.
    """
    names = expand_names([models] if isinstance(models, str) else models)
    conditions = conditions or Conditions()
    rows: list[ThroughputRow] = []
    for number, name in enumerate(names, 1):
        with progress(f"measuring {name} ({number} of {len(names)})", "steps"):
            rows.append((held or {}).get(name) or _measure_apart(name, conditions))
        if after_each is not None:
            after_each(rows)
    return rows


def expand_names(models: Iterable[str]) -> list[str]:
    """Return each model once for names, patterns such as ``nat_*``, and ``module:PACKAGE`` for all models of a package.

    Raises:
        ValueError: an unknown name, a pattern that matches none, or no name.
    """
    names: list[str] = []
    for word in models:
        package = word.removeprefix("module:")
        if package != word:
            modules = {name: f"{model_entrypoint(name).__module__}." for name in timm.list_models()}
            found = [name for name, module in modules.items() if module.startswith(f"{package}.")]
            if not found:
                raise ValueError(f"no model is registered by {package!r} (--models {word}): module:visionattn has ours")
            names += found
        elif set(word) & set("*?["):
            found = fnmatch.filter(timm.list_models(), word)
            if not found:
                raise ValueError(f"no model matches {word!r}")
            names += found
        else:
            check_model_name(word)
            names.append(word)
    if not names:
        raise ValueError("--models names no model: nat_tiny,resnet50 and dinat_* are possible")
    return list(dict.fromkeys(names))


def _measure_apart(name: str, conditions: Conditions) -> ThroughputRow:
    """Measure in another process; a failure is a row also."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        try:
            return ThroughputRow(**process.submit(measure, name, conditions).result())
        except BrokenProcessPool:
            error = "its process was killed, most likely for want of memory: lower --batch_size"
        except Exception as caught:
            lines = filter(None, (line.strip() for line in str(caught).splitlines()))
            error = f"{type(caught).__name__}: {' '.join(lines)}"
    return ThroughputRow(name, error=error)
