"""Heads that classify images by the tokens of a frozen backbone."""

from visionattn.probing.heads.base import ProbingHead, TokenKind, select_tokens
from visionattn.probing.heads.registry import create_head, list_heads

__all__ = ["ProbingHead", "TokenKind", "create_head", "list_heads", "select_tokens"]
