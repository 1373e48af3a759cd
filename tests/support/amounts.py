"""How much the long proofs do: a short form in each run, the long form with OUTBOX_TEST_LONG=1."""

from __future__ import annotations

import os

IS_LONG = os.environ.get("OUTBOX_TEST_LONG", "") not in ("", "0")


def amount(short: int, long: int) -> int:
    """Return how many rows, rounds or kills a test takes: `long` with OUTBOX_TEST_LONG=1."""
    return long if IS_LONG else short
