"""Weights and models in the formats of others."""
