"""How much a claim reads at most: less after a time-out, so that the next try can succeed."""

from __future__ import annotations

GOOD_BATCHES = 20
"""Batches without a time-out after which the limits are doubled again."""


class BatchLimits:
    """The most messages, and the most bytes of JSON, of the next claim.

    Halved when a statement of the library was cancelled or timed out, down to one message; doubled
    after some batches that went well, up to what was asked for.
    """

    def __init__(self, messages: int, size: int) -> None:
        self.most_messages = self.messages = messages
        self.most_bytes = self.bytes = size
        self.tries = 0
        """Failures since the last batch."""
        self._good = 0

    def halve(self) -> None:
        """Ask for less."""
        self.tries += 1
        self.messages = max(1, self.messages // 2)
        self.bytes = max(1, self.bytes // 2)
        self._good = 0

    def note_success(self) -> None:
        """Note a batch without a time-out."""
        self.tries = 0
        self._good += 1
        if self._good >= GOOD_BATCHES:
            self.messages = min(self.most_messages, 2 * self.messages)
            self.bytes = min(self.most_bytes, 2 * self.bytes)
            self._good = 0
