"""Measures of retrieval and of object discovery; nothing here knows of models or tasks."""
