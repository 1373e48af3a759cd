"""`manage.py consume GROUP…`: handle messages, in this process or in several.

Exit codes: see `processes.exit_codes`.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.utils import autoreload

from ... import groups, message_log, outages
from ...conf import is_number, log_alias
from ...consuming import in_flight
from ...consuming.notifications import Wakeups
from ...exceptions import OutboxError
from ...monitoring import health
from ...operations import status
from ...outages import Meaning
from ...processes.exit_codes import ExitCode
from ...processes.heartbeat import Heartbeat
from ...processes.shutdown import stop_on_signals
from ...processes.state_file import recover_state_file
from ...processes.supervisor import Supervisor
from ...worker import Worker
from ..verbs.monitoring import address, serving
from ..verbs.verb import positive

logger = logging.getLogger("outbox.worker")


LOG_ALIAS = "database alias; by default the one that the router writes messages to"


class Command(BaseCommand):
    help = "Handle the messages of consumer groups until stopped."
    is_command_line = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("groups", nargs="+", metavar="GROUP", help="consumer groups")
        parser.add_argument("--database", choices=list(connections), help=LOG_ALIAS)
        add = parser.add_argument_group("how long").add_argument
        add("--drain", action="store_true", help="handle what is in the log now and exit")
        add("--max-messages", type=positive, metavar="N", help="exit after that many messages")
        add("--max-memory", type=positive, metavar="MB", help="exit when the process is larger")
        add(
            "--max-outage",
            type=seconds,
            metavar="S",
            help="exit with an error after S seconds without a database",
        )
        add("--grace", type=seconds, default=30.0, metavar="S", help="time to finish when stopped")
        add = parser.add_argument_group("how").add_argument
        add("--processes", type=positive, metavar="N", help="supervise N worker processes")
        add("--batch-size", type=positive, metavar="N", help="most messages in a transaction")
        add("--poll-interval", type=seconds, metavar="S", help="longest sleep")
        add("--no-listen", action="store_true", help="poll only, for transaction poolers")
        add(
            "--reload",
            action=BooleanOptionalAction,
            help="start again when code changes (in DEBUG)",
        )
        add = parser.add_argument_group("watching it").add_argument
        add("--heartbeat-file", type=Path, metavar="FILE", help="touch it while there is progress")
        add(
            "--state-file",
            type=Path,
            metavar="FILE",
            help="record the message that is handled, to charge it if the process dies",
        )
        add(
            "--health-port",
            type=address,
            metavar="[ADDRESS:]PORT",
            help="serve /livez, /readyz and /metrics there",
        )
        add("--supervised", type=descriptors, help=SUPPRESS)

    def run_from_argv(self, argv: list[str]) -> None:
        """Run as a program of its own, which can be started again in other processes."""
        self.is_command_line = True
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the workers; ends with an exit code other than 0 by SystemExit or CommandError."""
        configure_logging(options["verbosity"])
        options["database"] = log_alias(options["database"])
        is_reloading = self._check(options)
        if is_reloading:
            autoreload.run_with_reloader(self._end_process, options)
        if code := self._start(options):
            sys.exit(code)

    def _check(self, options: dict[str, Any]) -> bool:
        """Refuse options that exclude each other; return whether to watch the code."""
        try:
            for name in options["groups"]:
                groups.get(name)
        except OutboxError as error:
            raise CommandError(str(error), returncode=ExitCode.USAGE) from error
        if options["supervised"]:
            return False
        self.check(tags=["outbox"], databases=[options["database"]])
        try:
            message_log.last_position(options["database"])
        except OutboxError as error:
            raise CommandError(str(error)) from error
        except outages.errors(options["database"]) as error:
            if outages.meaning(error, options["database"]) is Meaning.OTHER:
                raise
            outages.discard(options["database"])  # a worker waits for its database
        refusals = {
            "--reload watches forever: leave out --drain": options["reload"] and options["drain"],
            "--processes and --reload start the command line again: use them there": (
                options["processes"] or options["reload"]
            )
            and not self.is_command_line,
            "--state-file is for one process: --processes does the same without": options[
                "processes"
            ]
            and options["state_file"],
            "--processes needs a POSIX system": options["processes"] and os.name != "posix",
        }
        for text, applies in refusals.items():
            if applies:
                raise CommandError(text, returncode=ExitCode.USAGE)
        is_default = settings.DEBUG and self.is_command_line and not options["drain"]
        return is_default if options["reload"] is None else bool(options["reload"])

    def _end_process(self, options: dict[str, Any]) -> None:
        """Run in the reloader's thread, which does not end the process by itself."""
        code = self._start(options)
        logging.shutdown()
        os._exit(code)

    def _start(self, options: dict[str, Any]) -> int:
        if options["supervised"] or not options["processes"]:
            return self._work(options)
        port = options["health_port"]
        with health.tallies_folder(port is not None) as folder:
            supervisor = Supervisor(
                autoreload.get_child_arguments(),
                options["processes"],
                using=options["database"],
                grace=options["grace"],
                is_drain=options["drain"],
                heartbeat_file=options["heartbeat_file"],
                tallies=folder,
            )
            metrics = health.SupervisorMetrics(folder, lambda: supervisor.deaths)
            with serving(port, supervisor, metrics):
                return supervisor.run()

    def _work(self, options: dict[str, Any]) -> int:
        parent, shared, tallies_file = options["supervised"] or (None, None, None)
        port = None if options["supervised"] else options["health_port"]
        record = in_flight.record_to(shared) if shared is not None else None
        if options["state_file"]:
            record = recover_state_file(options["state_file"], options["database"])
        if record is not None:
            record.begin()
        tallies = health.tallies_of_worker(tallies_file, port is not None)
        heartbeat = Heartbeat(
            record,
            heartbeat_file=None if options["supervised"] else options["heartbeat_file"],
            max_memory=options["max_memory"],
            each_turn=tallies.turn if tallies else lambda: None,
        )
        worker = self._worker(options)
        heartbeat.attach(worker)
        failing: list[status.FailingRange] = []
        try:
            with (
                serving(port, heartbeat, tallies.collect if tallies else tuple),
                stop_on_signals(worker, options["grace"], parent, record),
            ):
                log_start(worker)
                worker.run(
                    max_messages=options["max_messages"],
                    max_outage=options["max_outage"],
                    until_idle=options["drain"],
                )
                if options["drain"]:
                    failing = status.failing_ranges(worker.groups, options["database"])
                logger.info("worker stopped: %d messages handled", worker.handled)
        except OutboxError as error:
            raise CommandError(str(error)) from error
        finally:
            if tallies is not None:
                tallies.write()
        if options["verbosity"] > 0 and not options["supervised"]:
            self.stderr.write(f"{worker.handled} messages handled")
        for each in failing:
            self.stderr.write(str(each))
        if failing:
            return ExitCode.FAILED_CHECK
        return ExitCode.MEMORY if heartbeat.exceeded_memory else ExitCode.DONE

    def _worker(self, options: dict[str, Any]) -> Worker:
        chosen = [groups.get(name) for name in dict.fromkeys(options["groups"])]
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


def log_start(worker: Worker) -> None:
    """Log the groups, channels, database and pid of this worker."""
    names = [group.name for group in worker.groups]
    channels = sorted({channel for group in worker.groups for channel in group.channels})
    logger.info(
        "worker started: groups %s, channels %s, database %r, pid %d",
        ", ".join(names),
        ", ".join(channels),
        worker.using,
        os.getpid(),
        extra={"groups": names, "channels": channels, "database": worker.using},
    )


def configure_logging(verbosity: int) -> None:
    """Write the outbox's log to stderr when the project has configured no log at all."""
    log = logging.getLogger("outbox")
    if verbosity > 0 and not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def seconds(text: str) -> float:
    """Return a finite number of seconds above 0."""
    if not is_number(number := float(text), 0, is_above=True):
        raise ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return number


def descriptors(text: str) -> tuple[int, int, Path | None]:
    """Return two file descriptors and the file of tallies that a supervisor hands over."""
    parent, shared, tallies = text.split(",", 2)
    return int(parent), int(shared), Path(tallies) if tallies else None
