"""Which types of messages this code knows, and which a group passes over.

A type without a handler is passed over only when this code knows it: an event class of that name in
the channel, a captured model, or a name in `ConsumerGroup.ignores()`. Any other type belongs to
another release of the code, and passing over its messages would lose them to that release.
"""

from __future__ import annotations

import logging

from .. import events
from ..changes.former_names import captured_types
from ..exceptions import UnknownMessageType
from ..groups import ConsumerGroup
from ..messages import Message

logger = logging.getLogger("outbox.consuming")

_warned: set[tuple[str, str, str]] = set()


def may_skip(group: ConsumerGroup, channel: str, type_name: str) -> bool:
    """Return whether a group passes over a type for which it has no handler.

    Warns once per group and type when this code does not know the type.
    """
    if is_known(group, channel, type_name):
        return True
    if (group.name, channel, type_name) not in _warned:
        _warned.add((group.name, channel, type_name))
        logger.warning(
            "group %s: this code does not know the type %r in channel %s, and the group %s "
            "(on_unknown=%r). Is this worker of an older release? Otherwise declare the event, "
            "or name it in %s.ignores().",
            group.name,
            type_name,
            channel,
            {"wait": "waits at it", "skip": "skips it", "park": "parks it"}[group.on_unknown],
            group.on_unknown,
            group.name,
            extra={"group": group.name, "channel": channel, "type": type_name},
        )
    return group.on_unknown == "skip"


def is_known(group: ConsumerGroup, channel: str, type_name: str) -> bool:
    """Return whether this code knows a type of messages."""
    return (
        events.event_type(channel, type_name) is not None
        or type_name in group.ignored_types
        or (channel, type_name) in captured_types()
    )


def error(group: ConsumerGroup, message: Message) -> UnknownMessageType:
    """Return why a group cannot handle a message of a type that this code does not know."""
    return UnknownMessageType(type=message.type, channel=message.channel, group=group.name)
