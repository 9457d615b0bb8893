"""Images: learning curves, confusion matrices, contact sheets of kernels."""
