"""Attention over several dilated windows in one softmax."""
