"""The demo from its first line to its last: `Story.play` is the page to read first."""

import itertools
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime

from django.core.management import call_command
from django.db import connection
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from crew import Crew, CrewError
from flights.expected import Expected
from flights.marks import Report, rate
from flights.models import DelayTrace
from flights.verify import GROUPS, check, wrong_flights
from jetstream import JetStream
from outbox.models import Message
from outbox.operations.status import list_groups
from outbox.worker import Worker
from screen import Screen, result_table

TICK = 0.5  # seconds between two looks at the database
STALL = 30  # seconds without progress after which the demo waits no longer and checks what there is
STEADY = 0.2  # share of the transactions before the rush

NOTES = """\

[dim]{published:,} messages published at {rate:,.0f}/s in the rush; PostgreSQL {server}, {driver},
synchronous_commit={commit}, fsync={fsync}; {workers} workers, batches of up to {batch}.
wrong     results unlike those worked out from the CSV alone
msgs/s    messages handled per second in the rush, replays included
p50, p99  before the rush, by the database's clock: from a message's INSERT, just
          before its commit, to the statement in which a handler writes[/]
"""


class Story:
    """Everything happens by itself; what the demo does on top of it stands in `script`."""

    def __init__(self, options: Namespace, expected: Expected, screen: Screen) -> None:
        self.options, self.expected, self.screen = options, expected, screen
        self.publishers = [f"publisher {number + 1}" for number in range(options.publishers)]
        self.workers = [f"worker {number + 1}" for number in range(options.workers)]
        self.steps = sum(expected.published.values()) - len(expected.alerts)
        # By which share of the transactions what happens.
        self.script: list[tuple[float, Callable[[], None]]] = [
            (STEADY, self.announce_rush),
            (0.4, self.kill_worker),
            (0.45, self.restart_worker),
            (0.65, self.replay),
        ]

    def play(self) -> int:
        self.prepare()
        with Crew() as self.crew:
            try:
                self.start_workers()
                self.start_publishers()
                self.watch()
            except CrewError as error:
                self.screen.say(f"[red]{error}")
                return 1
        return self.report()

    def prepare(self) -> None:
        call_command("migrate", verbosity=0)
        call_command("schedule", flights=self.options.flights)

    def start_workers(self) -> None:
        for worker in self.workers:
            self.start_worker(worker)
        while len(list_groups()) < len(GROUPS):
            time.sleep(TICK / 5)
            self.crew.check()

    def start_worker(self, worker: str) -> None:
        groups = [group.name for group in GROUPS]
        self.crew.start(worker, "consume", *groups, f"--batch-size={self.options.batch_size}")

    def start_publishers(self) -> None:
        parts = len(self.publishers)
        options = [f"--parts={parts}", f"--rate={self.options.rate / parts}", f"--steady={STEADY}"]
        if self.options.flights:
            options.append(f"--flights={self.options.flights}")
        for part, publisher in enumerate(self.publishers, 1):
            self.crew.start(publisher, "fly", f"--part={part}", *options)
        self.screen.say(
            f"{len(self.workers)} workers and {parts} publishers started, "
            f"steady at {self.options.rate} transactions/s"
        )

    def announce_rush(self) -> None:
        self.screen.say("the rush: from here on as fast as the publishers can")

    def kill_worker(self) -> None:
        self.crew.kill(self.workers[0])
        self.screen.say(f"[yellow]{self.workers[0]} killed with SIGKILL in the middle of its work")

    def restart_worker(self) -> None:
        self.start_worker(self.workers[0])
        self.screen.say(f"[yellow]{self.workers[0]} started again")

    def replay(self) -> None:
        self.crew.run("rebuild", "rebuild_delays")
        self.screen.say("[yellow]group delays reset to the first message, while the workers run")
        self.screen.follow({"delays, again": DelayTrace.objects.filter(replayed=False).count()})

    def watch(self) -> None:
        """Show the progress and play the script, until all is published and consumed."""
        due = self.expected.published
        totals = {group.name: sum(due[kind] for kind in group.types) for group in GROUPS}
        self.screen.follow({"published": self.steps, **totals})
        last, since = progress(), time.monotonic()
        while self.script or self.crew.running(self.publishers) or not caught_up():
            time.sleep(TICK)
            self.crew.check()
            done = progress()
            self.screen.update(done)
            if done != last:
                last, since = done, time.monotonic()
            elif time.monotonic() - since > STALL:
                self.screen.say(f"[red]no progress for {STALL} seconds")
                break
            if self.script and done["published"] >= self.steps * self.script[0][0]:
                self.script.pop(0)[1]()
        else:
            self.screen.say("all published and consumed")
        self.screen.unfollow()

    def report(self) -> int:
        published = Message.objects.filter(channel="flights").order_by("created_at")
        times = list(published.values_list("created_at", flat=True))
        rush = times[int(len(times) * STEADY)]
        reports = [check(group, self.expected, rush) for group in GROUPS]
        padding = 1 if self.screen.console.width >= 100 else 0
        self.screen.print("", result_table(reports, padding), self.notes(times, rush))
        code = self.conclude(reports, wrong_flights(self.expected))
        return self.relay() or code if self.options.relay else code

    def relay(self) -> int:
        """Send all flights to JetStream and compare what is there; return the exit code."""
        published = Message.objects.filter(channel="flights").order_by("position")
        wanted = list(published.values_list("position", flat=True))
        with JetStream() as server:
            began = time.monotonic()
            Worker([server.relay()], batch_size=500).drain()
            seconds = time.monotonic() - began
            found = server.positions()
        lost, more = len(set(wanted) - set(found)), len(found) - len(set(found))
        out_of_order = sum(a > b for a, b in itertools.pairwise(found))
        self.screen.print(
            f"[bold {'green' if found == wanted else 'red'}]relay to NATS JetStream: "
            f"{len(found):,} messages in {seconds:.0f} s, {lost} lost, {more} doubled, "
            f"{out_of_order} out of order."
        )
        return 0 if found == wanted else 1

    def notes(self, times: list[datetime], rush: datetime) -> str:
        return NOTES.format(
            published=len(times),
            rate=rate(at for at in times if at >= rush),
            server=setting("server_version").split()[0],
            driver="psycopg 3" if is_psycopg3 else "psycopg2",
            commit=setting("synchronous_commit"),
            fsync=setting("fsync"),
            workers=len(self.workers),
            batch=self.options.batch_size,
        )

    def conclude(self, reports: list[Report], wrong: int) -> int:
        """Say in one line how it went, and return the exit code."""
        faults = sum(report.faults for report in reports)
        if faults or wrong:
            self.screen.print(
                f"[bold red]{faults:,} faults in the groups' results, "
                f"{wrong:,} in the flights and the log themselves."
            )
            return 1
        messages = sum(self.expected.published.values())
        self.screen.print(
            f"[bold green]{len(self.expected.board):,} flights, {messages:,} messages, "
            f"{len(GROUPS)} groups: nothing lost, nothing doubled, nothing out of order."
        )
        return 0


def progress() -> dict[str, int]:
    """How many messages were published, and handled by each group."""
    return {
        "published": Message.objects.filter(channel="flights").count(),
        **{
            group.name: group.trace._default_manager.filter(replayed=False).count()
            for group in GROUPS
        },
        "delays, again": DelayTrace.objects.filter(replayed=True).count(),
    }


def caught_up() -> bool:
    """Whether no group has a message ahead of it; one look at all, as `board` feeds `alerts`."""
    lags = {group.group: group.lag for group in list_groups()}
    return all(lags.get(group.name) == 0 for group in GROUPS)


def setting(name: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", [name])
        return str(cursor.fetchone()[0])
