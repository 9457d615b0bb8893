"""The halves of attention, scores and weighted sums, differentiable to any order."""
