"""The exit codes of `manage.py consume` and `manage.py outbox`."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """How a command ended; 128 plus a signal's number: a second signal ended it."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    """The arguments are wrong, or do not fit the database."""
    FAILED_CHECK = 3
    """A threshold is passed, an audit or the doctor found a fault, a drain left messages behind."""
    MEMORY = 4
    """The memory limit was reached: start the process again."""
    GRACE = 5
    """The batch was not done within the grace period and was rolled back."""
    PIPE = 141
    """The reader of the output, such as `head`, has gone."""
