"""Probing of frozen backbones: heads on their tokens."""
