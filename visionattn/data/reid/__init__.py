"""Re-identification: data sets of people and vehicles seen by several cameras."""

from visionattn.data.reid.module import ReidBatch, ReidData

__all__ = ["ReidBatch", "ReidData"]
