"""Segments of the log."""
