"""Attention operators over 2-D windows; needs torch alone."""
