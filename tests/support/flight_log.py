"""The flights of January 2013 in the log: what happened to the first so many of them, in order."""

import sys
from pathlib import Path

from django.db import connection

sys.path.append(str(Path(__file__).parents[2] / "examples" / "flights"))

from flights import timeline

KINDS = {kind: kind.name.title() for kind in timeline.Kind}
PUBLISH = """
    INSERT INTO outbox_message (channel, key, type, payload, created_at)
    SELECT 'flights', tail, type, jsonb_build_object('flight', flight), at
    FROM unnest(%s::text[], %s::text[], %s::int[], %s::timestamptz[])
        WITH ORDINALITY AS step (tail, type, flight, at, place)
    ORDER BY place
    RETURNING position
"""


def steps(flights):
    """What happened to the first `flights` flights, in the order in which it happened."""
    return timeline.timeline(timeline.read_flights(flights))


def publish(happened, at=None):
    """Publish steps with one statement, each as if at its own time; return the positions.

    `at`: the times of publication instead of those of the steps.
    """
    columns = [
        [step.flight.tail for step in happened],
        [KINDS[step.kind] for step in happened],
        [step.number for step in happened],
        at or [step.at for step in happened],
    ]
    with connection.cursor() as cursor:
        cursor.execute(PUBLISH, columns)
        return [position for (position,) in cursor.fetchall()]
