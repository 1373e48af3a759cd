"""A run of the rack: a server, a proxy, a fleet of processes, chaos, operators; then the checker.

The dice of all parts come from one seed. Processes and the server have a will of their own, so a seed
repeats what is done to them and not its every effect.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from outbox.embedded import Server
from tests.soak.findings import Action, Finding, by_kind, tell
from tests.soak.server import LEFT, PENDING, PLACES, PRESENT, end_prepared, query, wait

OPTIONS = {
    "max_connections": "100",
    "max_prepared_transactions": "20",
    "synchronous_commit": "on",
}
SEGMENT = 2000
"""Positions in the first segments, so that retention has something to do."""
STALL = 120.0
"""Seconds without faults in which some cursor must move while something is pending."""
UNLIMITED = " ".join(
    f"-c {name}=0"
    for name in (
        "statement_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "default_transaction_read_only",
    )
)


class Rack:
    """Everything of a run."""

    def __init__(self, minutes: float, seed: str, folder: Path, server: Server) -> None:
        self.minutes, self.seed, self.folder, self.server = minutes, seed, folder, server
        self.findings: list[Finding] = []
        self.told: list[Action] = []
        self.drained = 0.0
        """Seconds from the last fault until nothing was pending."""
        self.began = time.monotonic()
        entry = server.settings("soak")
        own = {**entry, "OPTIONS": {"application_name": "rack", "options": UNLIMITED}}
        os.environ["SOAK_DATABASE"] = json.dumps(own)
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.soak.settings"
        self.entry = entry

    def prepare(self) -> None:
        """Make the database, with small segments, and connect everything."""
        import django
        from django.core.management import call_command
        from django.db import connection

        from outbox.retention import segments

        self.server.create_database("soak")
        django.setup()
        # What a redrive here logs is no finding.
        logging.getLogger("outbox").setLevel(logging.CRITICAL)
        call_command("migrate", verbosity=0)
        with connection.cursor() as cursor:
            for each in segments.list_segments():
                if each.lower is not None:
                    cursor.execute(f"DROP TABLE {each.name}")
            for number in range(4):
                cursor.execute(
                    "SELECT outbox_create_segment(%s, %s)",
                    [max(1, number * SEGMENT), (number + 1) * SEGMENT],
                )
            cursor.execute((Path(__file__).parent / "schema.sql").read_text(encoding="utf-8"))

    def start(self) -> None:
        """Start the proxy, the processes, chaos and operators."""
        from tests.soak.chaos import Chaos
        from tests.soak.fleet import Fleet
        from tests.soak.operators import Operators
        from tests.soak.proxy import Proxy

        self.proxy = Proxy(f"{self.entry['HOST']}/.s.PGSQL.{self.entry['PORT']}")
        through = {**self.entry, "HOST": "127.0.0.1", "PORT": str(self.proxy.port), "OPTIONS": {}}
        environment = {**os.environ, "SOAK_DATABASE": json.dumps(through)}
        self.fleet = Fleet(self.folder, environment, self.seed)
        self.chaos = Chaos(
            f"{self.seed}-chaos", self.fleet, self.proxy, self.server, query, self.tell
        )
        direct = {**os.environ}
        self.operators = Operators(f"{self.seed}-operators", direct, self.tell)
        self.threads = [
            threading.Thread(target=self._guarded(each.run), name=type(each).__name__, daemon=True)
            for each in (self.chaos, self.operators)
        ]

    def _guarded(self, function: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            import traceback

            try:
                function()
            except Exception:
                self.findings.append(Finding("rack failed", traceback.format_exc()))

        return call

    def tell(self, text: str) -> None:
        """Note an action, with its place in the order of what handlers did."""
        try:
            (order,) = query("SELECT last_value FROM soak_order")[0]
        except Exception:
            order = self.told[-1].order if self.told else 0
        self.told.append(Action(time.monotonic() - self.began, order, text))

    def work(self) -> None:
        """Let everything happen for the time of the run."""
        every = 'SELECT count(DISTINCT "group") >= 8 FROM soak_journal'
        if not wait(lambda: query(every)[0][0], 300):
            self.findings.append(Finding("stuck", "not all groups have begun within 300 s"))
        deadline = time.monotonic() + self.minutes * 60
        for thread in self.threads:
            thread.start()
        while time.monotonic() < deadline and all(thread.is_alive() for thread in self.threads):
            end_prepared(2)
            time.sleep(0.5)

    def settle(self) -> None:
        """Heal everything, let the groups finish, stop them, and see that nothing is left."""
        from outbox.operations import pauses
        from tests.soak.operators import ALL

        self.chaos.end.set()
        self.operators.end.set()
        for thread in self.threads:
            thread.join(300)
        self.chaos.heal()
        time.sleep(4.5)  # stopped processes go on
        self.fleet.stop_publishers()
        end_prepared(0)
        for name in ALL:
            pauses.resume(name, reason="rack")
        self._drain(set(ALL))
        for name in ALL:
            self.operators.audit(name)
        self.fleet.stop()
        if not wait(lambda: not query(LEFT), 60):
            self.findings += [Finding("left behind", str(row)) for row in query(LEFT)]

    def _drain(self, groups: set[str]) -> None:
        """Wait until nothing is pending, for as long as cursors move."""
        began = since = time.monotonic()
        places: list[Any] = []
        while True:
            pending = query(PENDING)
            missing = groups - {name for (name,) in query(PRESENT)}
            if not pending and not missing:
                break
            if (now_at := query(PLACES)) != places:
                places, since = now_at, time.monotonic()
            elif time.monotonic() - since > STALL:
                self.findings += [Finding("stuck", f"no cursor of {name}") for name in missing]
                self.findings += [stuck(*row) for row in pending]
                break
            time.sleep(1)
        self.drained = time.monotonic() - began

    def check(self) -> int:
        """Check everything and print; return the exit code."""
        from tests.soak.checker import Checker

        checker = Checker(self.fleet.acknowledged())
        found = [
            *self.findings,
            *self.fleet.findings,
            *self.operators.findings,
            *checker.check(),
        ]
        self.report(checker.handled(), found)
        tell(found, self.told)
        if found:
            kept = Path(tempfile.gettempdir()) / f"soak-{self.seed}"
            shutil.copytree(self.folder, kept, dirs_exist_ok=True)
            lines = (f"{at:8.1f} s {order} {text}" for at, order, text in self.told)
            (kept / "actions.log").write_text("\n".join(lines))
            print(f"\nactions and logs: {kept}")
            print(f"again: make soak MINUTES={self.minutes:g} SEED={self.seed}")
        return 1 if found else 0

    def report(self, handled: dict[str, int], findings: list[Finding]) -> None:
        """Print the numbers of the run."""
        (published,), (positions,) = query(
            "SELECT count(*) FROM soak_fact UNION ALL SELECT last_value FROM outbox_message_position_seq"
        )
        print(f"seed {self.seed}, {self.minutes:g} minutes, {self.server_version()}")
        print(f"published: {published} messages recorded by publishers, last position {positions}")
        print("handled:", listed(handled))
        print("chaos:", listed(self.chaos.counts))
        print("operators:", listed(self.operators.counts))
        print(f"end: {self.drained:.0f} s without faults until all was handled, or stuck")
        print(f"findings: {len(findings)}")
        for kind, found in by_kind(findings).items():
            print(f"    {kind}: {len(found)}")

    def server_version(self) -> str:
        """Return the versions of the server and the driver."""
        from django.db import connection

        return f"PostgreSQL {connection.pg_version // 10000}, {connection.Database.__name__}"


def stuck(
    group: str, channel: str, slot: int, place: int, following: int, attempts: int, error: str
) -> Finding:
    """Return the finding about a range that does not go on."""
    text = f"{group} stands at {place} of {channel} before {following}, attempts {attempts} {error}"
    return Finding("stuck", text, group, channel, slot, following)


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {n}" for what, n in sorted(counts.items()))


def run(minutes: float, seed: str) -> int:
    """Run the rack once; print what was done and found, and return the exit code."""
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Server(options=OPTIONS) as server:
        rack = Rack(minutes, seed, Path(folder), server)
        rack.prepare()
        rack.start()
        try:
            rack.work()
            rack.settle()
        finally:
            rack.fleet.stop()
        return rack.check()
