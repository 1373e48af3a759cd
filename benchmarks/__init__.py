"""Measurements of the outbox, each beside its floor: `python -m benchmarks [NAME ...]`."""
