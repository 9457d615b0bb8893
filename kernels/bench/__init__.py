"""Benchmarks of this library beside its peers: ``python -m kernels.bench.NAME``."""
