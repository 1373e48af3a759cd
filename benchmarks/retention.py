"""Retention: the long run."""

from __future__ import annotations

import os

from benchmarks.long_run import LongRun


def run(*, quick: bool) -> None:
    """Print the long run (OUTBOX_SOAK_MESSAGES, 5000000 by default)."""
    messages = int(os.environ.get("OUTBOX_SOAK_MESSAGES", "100000" if quick else "5000000"))
    LongRun(messages).show()
