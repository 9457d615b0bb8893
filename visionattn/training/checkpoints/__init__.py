"""Checkpoints: what they hold, how files are read, and when and how they are written."""
