"""Object binding: probes that tell whether two patches lie on the same object, layer by layer of a frozen backbone.

`BindingSession` trains and evaluates probes on a data set of scenes and returns `BindingResults`. `Experiments` change
the tokens that the probes read. `BindingProbes` are the probes alone, for features from elsewhere.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from visionattn.objects.binding import BindingProbes, ProbeTraining
from visionattn.objects.patches import PatchLabels, label_patches
from visionattn.objects.probes import PROBES, PairProbe, create_probe
from visionattn.objects.results import BindingResults, BindingRow, best_layer
from visionattn.objects.scores import PairRates, PairScores

if TYPE_CHECKING:
    from visionattn.objects.clicks import click_objects
    from visionattn.objects.experiments import Experiments, Interventions
    from visionattn.objects.session import BindingData, BindingSession

__all__ = [
    "PROBES",
    "BindingData",
    "BindingProbes",
    "BindingResults",
    "BindingRow",
    "BindingSession",
    "Experiments",
    "Interventions",
    "PairProbe",
    "PairRates",
    "PairScores",
    "PatchLabels",
    "ProbeTraining",
    "best_layer",
    "click_objects",
    "create_probe",
    "label_patches",
]

_LAZY = {
    "BindingData": "session",
    "BindingSession": "session",
    "Experiments": "experiments",
    "Interventions": "experiments",
    "click_objects": "clicks",
}
"""Names whose modules are imported upon first use, as they load Lightning."""


def __getattr__(name: str) -> Any:
    """Import a name of `_LAZY`."""
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
