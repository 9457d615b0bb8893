"""The C++ kernels for CPUs and their build."""
