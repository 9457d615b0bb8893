"""Evaluation of trained models: load a model, evaluate it on a data set, get a result with figures."""
