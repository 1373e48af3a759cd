"""A sink that keeps what it gets in memory and fails as a test tells it to."""

from __future__ import annotations

from outbox.exceptions import DestinationUnavailable, RecordRefused
from outbox.relays import sink as sinks


class Recording:
    """Takes records one by one; `refuses` and `is_down` say which ones it does not take."""

    most_together = None

    def __init__(self, to="{channel}", knows_its_position=False):
        self.to = to
        self.knows_its_position = knows_its_position
        self.records, self.calls, self.asked = [], [], []
        self.refuses, self.is_down = set(), False
        self.down_at = None
        self.seconds = None

    def position(self, origin, to):
        self.asked.append((origin, to))
        if self.is_down:
            raise sinks.unavailable("down")
        if not self.knows_its_position or not self.records:
            return None
        return sinks.position_in(self.records[-1].attributes, origin)

    def send(self, origin, records):
        self.calls.append([record.position for record in records])
        for sent, record in enumerate(records):
            if self.is_down or record.position == self.down_at:
                raise DestinationUnavailable(reason="down", sent=sent, seconds=self.seconds)
            if record.position in self.refuses:
                raise RecordRefused(reason="no, not ever", sent=sent)
            self.records.append(record)

    def close(self):
        pass

    def sent(self):
        return [record.position for record in self.records]
