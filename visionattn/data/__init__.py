"""Lightning DataModules on timm.data."""
