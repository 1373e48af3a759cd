"""The tables: the log, the cursors of the groups, the parked messages, the operators' actions,
and how far snapshots are.

The log is read and written by the statements in `sql`; these models are there for
migrations, the admin and questions asked through the ORM.
"""

from __future__ import annotations

from .log import (
    Message,
    Stream,
    StreamMessage,
)
from .log_model import (
    CHANNEL_LENGTH,
    GROUP_LENGTH,
    SLOTS,
    ClockTimestamp,
    LogModel,
    PayloadField,
)
from .progress import (
    Cursor,
    Group,
    OperatorAction,
    ParkedMessage,
    Snapshot,
)
from .retention import (
    ArchivedSegment,
    ChannelRetention,
    Maintenance,
)

__all__ = [
    "CHANNEL_LENGTH",
    "GROUP_LENGTH",
    "SLOTS",
    "ArchivedSegment",
    "ChannelRetention",
    "ClockTimestamp",
    "Cursor",
    "Group",
    "LogModel",
    "Maintenance",
    "Message",
    "OperatorAction",
    "ParkedMessage",
    "PayloadField",
    "Snapshot",
    "Stream",
    "StreamMessage",
]
