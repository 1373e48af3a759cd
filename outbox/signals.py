"""Django signals about failing messages, sent after the outcome is committed.

The sender is the consumer group. A receiver that raises is logged by Django and harms nothing.
"""

from __future__ import annotations

from django.dispatch import Signal

message_failed = Signal()
"""An attempt failed. `message`: as the handler saw it; `error`: the exception; `retry_delay`:
seconds until the next attempt, None when the group gave up on the message."""

message_parked = Signal()
"""A message was parked. `message` and `error` as above. Not sent for the later messages of its
key that are parked behind it."""

key_released = Signal()
"""No message of a key is parked any more. `channel`, `key`; the next message of the key is handled
by the workers again."""
