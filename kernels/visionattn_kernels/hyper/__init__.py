"""HyperZ·Z·W, the operator of Terminator, and its kernels for CPUs."""
