"""Model changes as messages: triggers that capture them, and the event of one.

Migrations of projects name `outbox.changes.CaptureSql`; that path stays.
"""

from .trigger_sql import CaptureSql

__all__ = ["CaptureSql"]
