"""Protocols that evaluate frozen features: joint training of heads, k-NN, linear classifiers, few-shot learning."""

from visionattn.probing.protocols.candidates import Candidate, Recipe, paper_protocol, sweep
from visionattn.probing.protocols.fewshot import FewShotResult, few_shot
from visionattn.probing.protocols.joint import train_heads
from visionattn.probing.protocols.knn import knn
from visionattn.probing.protocols.linear import logistic_regression, ridge
from visionattn.probing.protocols.results import HeadResult
from visionattn.probing.protocols.selection import Selection

__all__ = [
    "Candidate", "FewShotResult", "HeadResult", "Recipe", "Selection", "few_shot", "knn", "logistic_regression",
    "paper_protocol", "ridge", "sweep", "train_heads",
]  # fmt: skip
