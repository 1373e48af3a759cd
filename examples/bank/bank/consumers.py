"""The group that writes the statements."""

import outbox

from .events import Deposited, Opened, Withdrawn
from .models import Line

statements = outbox.ConsumerGroup("statements", channels=["accounts"], parallelism=2)


@statements.handler(Opened)
def opened(event, message):
    write(message, "opened", event.amount)


@statements.handler(Withdrawn)
def withdrawn(event, message):
    write(message, f"transfer {event.transfer}", -event.amount)


@statements.handler(Deposited)
def deposited(event, message):
    write(message, f"transfer {event.transfer}", event.amount)


def write(message, text, amount):
    """Add the line after the last one; a line that is there already would be an error."""
    number = message.stream_version
    before = Line.objects.filter(account=message.key, number=number - 1).first()
    Line.objects.create(
        account=message.key,
        number=number,
        text=text,
        amount=amount,
        balance=(before.balance if before else 0) + amount,
    )
