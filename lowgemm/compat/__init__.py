"""Layers with the names and habits of other libraries."""
