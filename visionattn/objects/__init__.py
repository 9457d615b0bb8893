"""Object binding: probes that tell whether two patches lie on the same object, layer by layer of a frozen backbone.

`BindingSession` trains and evaluates probes on a data set of scenes; `Experiments` change the tokens that they read.
`BindingProbes` are the probes alone, for features from elsewhere.
"""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports
from visionattn.objects.binding import BindingProbes, ProbeTraining
from visionattn.objects.patches import label_patches
from visionattn.objects.probes import PROBES, PairProbe, create_probe
from visionattn.objects.results import BindingResults, BindingRow, best_layer

if TYPE_CHECKING:
    from visionattn.objects.clicks import click_objects
    from visionattn.objects.experiments import Experiments, Interventions
    from visionattn.objects.head_binding import measure_binding, open_binding_scenes
    from visionattn.objects.session import BindingData, BindingSession

__all__ = [
    "PROBES", "BindingData", "BindingProbes", "BindingResults", "BindingRow", "BindingSession", "Experiments",
    "Interventions", "PairProbe", "ProbeTraining", "best_layer", "click_objects", "create_probe", "label_patches",
    "measure_binding", "open_binding_scenes",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "head_binding": "measure_binding open_binding_scenes",
        "clicks": "click_objects",
        "experiments": "Experiments Interventions",
        "session": "BindingData BindingSession",
    },
)
