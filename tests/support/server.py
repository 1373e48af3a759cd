"""The PostgreSQL of a test run: the one that DATABASE_URL names, else one of its own."""

from __future__ import annotations

import os
import sys

from outbox.embedded import Server

OWN_SERVER = Server(options={"max_connections": "200", "max_prepared_transactions": "10"})


def database_url() -> str:
    """Return DATABASE_URL; a test run without one starts a throw-away server, which ends with it."""
    if "DATABASE_URL" not in os.environ and "pytest" in sys.modules:
        os.environ["DATABASE_URL"] = OWN_SERVER.start().url
    return os.environ.get("DATABASE_URL", "postgres:///outbox")
