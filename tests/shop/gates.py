"""Gates: places in a handler where a test holds a worker. A gate is an advisory lock with two
integers as its key, so it shows in pg_locks, works across processes, and lies outside the key space
of the log's own locks."""

import zlib

from django.db import connection

GATES = 7001


def gate_key(name):
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def wait_at_gate(name):
    """Wait until no session holds the gate `name` closed; the transaction then keeps a share of
    it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [GATES, gate_key(name)])
