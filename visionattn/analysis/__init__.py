"""Analysis of what a model computes on single images: attention, features, gradients."""
