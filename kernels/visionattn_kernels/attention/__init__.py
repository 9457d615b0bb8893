"""Windowed attention as one operator: public functions, a problem, and the backends that can run it."""
