"""Pictures: learning curves, confusion matrices."""
