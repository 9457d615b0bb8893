"""Models, one family per file; importing this package registers them with timm."""
