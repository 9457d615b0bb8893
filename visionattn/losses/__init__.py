"""Losses that timm and pytorch-metric-learning do not have, or not in the form that is wanted here."""
