"""The PostgreSQL of a test run: the one that DATABASE_URL names, else one of its own."""

from __future__ import annotations

import os
import sys

from outbox.embedded import Server

OWN_SERVER = Server(options={"max_connections": "200", "max_prepared_transactions": "10"})
_started: list[Server] = []


def database_url() -> str:
    """Return DATABASE_URL; a test run without one starts a throw-away server, which ends with it."""
    if "DATABASE_URL" not in os.environ and "pytest" in sys.modules:
        os.environ["DATABASE_URL"] = OWN_SERVER.start().url
        _started.append(OWN_SERVER)
    return os.environ.get("DATABASE_URL", "postgres:///outbox")


def stop_own() -> None:
    """Stop the server that `database_url` started, if it started one."""
    OWN_SERVER.stop()
    if _started:
        os.environ.pop("DATABASE_URL", None)
        _started.clear()
