"""What a model computes on single images: attention, features, gradients."""
