"""Command lines of train.py and eval.py."""
