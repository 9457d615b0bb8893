"""Measures of retrieval; nothing here knows of models or tasks."""
