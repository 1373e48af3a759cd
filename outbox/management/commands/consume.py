"""`manage.py consume GROUP…`: run a worker."""

from __future__ import annotations

import signal
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from outbox import groups
from outbox.exceptions import OutboxError
from outbox.wakeups import Wakeups
from outbox.worker import Worker


class Command(BaseCommand):
    help = "Handle the messages of consumer groups until stopped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("groups", nargs="+", metavar="GROUP", help="consumer groups")
        parser.add_argument("--database", default="default", help="database alias")
        parser.add_argument("--drain", action="store_true", help="handle what is pending and exit")
        parser.add_argument("--max-messages", type=positive, help="exit after that many messages")
        parser.add_argument("--batch-size", type=positive, help="most messages in a transaction")
        parser.add_argument("--poll-interval", type=seconds, help="longest sleep, in seconds")
        parser.add_argument(
            "--no-listen", action="store_true", help="poll only, for transaction poolers"
        )
        parser.add_argument(
            "--max-outage", type=seconds, help="give up after that many seconds without a database"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the worker in this process."""
        self.check(tags=["outbox"], databases=[options["database"]])
        try:
            worker = self._worker(options)
        except OutboxError as error:
            raise CommandError(str(error), returncode=2) from error
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: worker.stop())
        if options["drain"]:
            worker.drain(options["max_messages"])
        else:
            worker.run(
                max_messages=options["max_messages"], max_outage=options["max_outage"]
            )
        if options["verbosity"] > 0:
            self.stderr.write(f"{worker.handled} messages handled")

    def _worker(self, options: dict[str, Any]) -> Worker:
        chosen = [groups.get(name) for name in options["groups"]]
        wakeups = Wakeups(
            chosen,
            options["database"],
            listen=False if options["no_listen"] else None,
            poll_interval=options["poll_interval"],
        )
        return Worker(
            chosen,
            using=options["database"],
            batch_size=options["batch_size"],
            wakeups=wakeups,
        )


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def seconds(text: str) -> float:
    """Return a number of seconds above 0."""
    if (number := float(text)) <= 0:
        raise ValueError(text)
    return number
