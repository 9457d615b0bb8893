"""Tests of memory, made from a seed: associative recall on maps and in sequences, and regression in context."""

from visionattn.data.recall.examples import Example, MapRecall, Problem, Regression, SequenceRecall
from visionattn.data.recall.module import RecallBatch, RecallData

__all__ = ["Example", "MapRecall", "Problem", "RecallBatch", "RecallData", "Regression", "SequenceRecall"]
