"""Parallax attention: softmax attention whose weights a second score corrects."""
