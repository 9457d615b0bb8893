"""Objects in features: probes for object binding, and what decodes slots."""
