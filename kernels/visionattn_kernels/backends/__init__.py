"""Implementations of the window operators; none imports another."""
