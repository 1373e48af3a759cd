"""The rights that the database roles of publishers, consumers, operators and readers need.

The statements are printed and not run: who may do what is the database administrator's decision.
"""

from __future__ import annotations

from ..conf import log_alias
from ..sql import scalar

READ = [
    ("SELECT", table)
    for table in (
        "outbox_message",
        "outbox_event_router",
        "outbox_cursor",
        "outbox_parked_message",
        "outbox_operator_action",
        "outbox_snapshot",
        "outbox_archived_segment",
        "outbox_channel_retention",
        "outbox_maintenance",
        "outbox_stream",
        "outbox_stream_message",
    )
]
POSITIONS = "SEQUENCE {schema}.outbox_message_position_seq"
WRITE = "INSERT, UPDATE, DELETE"
CONSUME = [
    (WRITE, "outbox_cursor"),
    (WRITE, "outbox_parked_message"),
    ("INSERT, UPDATE", "outbox_maintenance"),
]

RIGHTS: dict[str, list[tuple[str, str]]] = {
    "publisher": [
        ("USAGE", POSITIONS),
        ("INSERT (channel, key, type, payload, headers), SELECT (position)", "outbox_message"),
        ("SELECT, INSERT, UPDATE", "outbox_stream"),
        ("SELECT, INSERT", "outbox_stream_message"),
    ],
    "consumer": [("SELECT", POSITIONS), *READ, *CONSUME],
    "operator": [
        ("SELECT", POSITIONS),
        *READ,
        *CONSUME,
        ("INSERT", "outbox_operator_action"),
        (WRITE, "outbox_snapshot"),
    ],
    "reader": [("SELECT", POSITIONS), *READ],
}
"""Kind of role -> its rights, each with the table, or the sequence, of the log's schema."""


def grants(kind: str, role: str, using: str | None = None) -> list[str]:
    """Return the statements that give a database role the rights of a kind of role.

    `kind`: "publisher", "consumer", "operator" or "reader". A role may be of several kinds: a
    consumer whose handlers publish is a publisher, too.
    """
    schema = _quoted(scalar("log_schema", log_alias(using)))
    statements = [f"GRANT USAGE ON SCHEMA {schema} TO {_quoted(role)};"]
    for rights, table in RIGHTS[kind]:
        target = table.format(schema=schema) if table is POSITIONS else f"{schema}.{table}"
        statements.append(f"GRANT {rights} ON {target} TO {_quoted(role)};")
    return statements


def _quoted(name: str) -> str:
    """Return a name as an SQL identifier; Django's quote_name() keeps quotes inside a name."""
    return '"{}"'.format(name.replace('"', '""'))
