"""Faults at random: processes, sessions, the server, the network, the server's settings."""

from __future__ import annotations

import collections
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from outbox.embedded import Server
from tests.soak.fleet import Fleet
from tests.soak.proxy import Proxy

VICTIM = """
    SELECT pid FROM pg_stat_activity
    WHERE (application_name LIKE 'outbox:%' OR application_name LIKE 'soak:%')
      AND datname = current_database()
    ORDER BY pid
"""
TIMEOUTS = {
    "statement_timeout": ["60ms", "300ms"],
    "idle_in_transaction_session_timeout": ["50ms", "200ms"],
    "idle_session_timeout": ["100ms", "500ms"],
    "lock_timeout": ["10ms", "100ms"],
}


class Chaos:
    """Does one thing after the other, by the dice, until it is told to end."""

    def __init__(
        self,
        seed: str,
        fleet: Fleet,
        proxy: Proxy,
        server: Server,
        query: Callable[[str], list[Any]],
        tell: Callable[[str], None],
    ) -> None:
        self.dice = random.Random(seed)
        self.fleet, self.proxy, self.server = fleet, proxy, server
        self.query, self.tell = query, tell
        self.counts: collections.Counter[str] = collections.Counter()
        self.end = threading.Event()
        self.faults: list[tuple[int, Callable[[], None]]] = [
            (12, self.kill_worker),
            (2, self.kill_supervisor),
            (1, self.kill_publisher),
            (6, self.stop_process),
            (12, self.terminate_backend),
            (6, self.cancel_backend),
            (2, self.restart_server),
            (1, self.read_only),
            (3, self.cut),
            (2, self.stall),
            (2, self.delay),
            (2, self.timeouts),
        ]

    def run(self) -> None:
        """Do something every other second."""
        weights = [weight for weight, _ in self.faults]
        while not self.end.wait(self.dice.uniform(0.3, 3)):
            _, fault = self.dice.choices(self.faults, weights)[0]
            fault()

    def heal(self) -> None:
        """Undo what lasts."""
        self.proxy.delay = 0.0
        self.query("ALTER SYSTEM RESET ALL")
        self.query("SELECT pg_reload_conf()")

    def _kill(self, members: list[Any], what: str, *, whole: bool = False) -> None:
        member = self.dice.choice(members)
        pids = [member.process.pid] if whole else member.processes()
        pid = self.dice.choice(pids) if pids else member.process.pid
        if self.fleet.kill(member, pid, signal.SIGKILL):
            self.counts[what] += 1
            self.tell(f"SIGKILL {what} {pid}")

    def kill_worker(self) -> None:
        self._kill(self.fleet.workers, "workers killed")

    def kill_supervisor(self) -> None:
        self._kill(
            [m for m in self.fleet.workers if m.is_supervisor], "supervisors killed", whole=True
        )

    def kill_publisher(self) -> None:
        self._kill(self.fleet.publishers, "publishers killed")

    def stop_process(self) -> None:
        member = self.dice.choice([*self.fleet.workers, *self.fleet.publishers])
        pids = member.processes()
        if not pids:
            return
        pid, seconds = self.dice.choice(pids), self.dice.uniform(0.3, 4)
        if self.fleet.kill(member, pid, signal.SIGSTOP):
            self.counts["processes stopped"] += 1
            self.tell(f"SIGSTOP {pid} for {seconds:.1f} s")
            threading.Timer(seconds, self.fleet.kill, (member, pid, signal.SIGCONT)).start()

    def _victim(self) -> int | None:
        victims = [pid for (pid,) in self.query(VICTIM)]
        return self.dice.choice(victims) if victims else None

    def terminate_backend(self) -> None:
        if pid := self._victim():
            self.query(f"SELECT pg_terminate_backend({pid})")
            self.counts["backends terminated"] += 1
            self.tell(f"pg_terminate_backend {pid}")

    def cancel_backend(self) -> None:
        if pid := self._victim():
            self.query(f"SELECT pg_cancel_backend({pid})")
            self.counts["backends cancelled"] += 1
            self.tell(f"pg_cancel_backend {pid}")

    def restart_server(self) -> None:
        mode = self.dice.choice(["immediate", "immediate", "fast"])
        self.tell(f"restart {mode}")
        self.server.restart(mode)  # type: ignore[arg-type]
        self.counts[f"restarts {mode}"] += 1
        self.tell("the server is back")

    def _set(self, name: str, value: str, seconds: float) -> None:
        self.tell(f"{name} = {value} for {seconds:.1f} s")
        self.query(f"ALTER SYSTEM SET {name} = '{value}'")
        self.query("SELECT pg_reload_conf()")
        time.sleep(seconds)
        self.query(f"ALTER SYSTEM RESET {name}")
        self.query("SELECT pg_reload_conf()")

    def read_only(self) -> None:
        self._set("default_transaction_read_only", "on", self.dice.uniform(0.3, 2))
        self.counts["read-only phases"] += 1

    def timeouts(self) -> None:
        name = self.dice.choice(sorted(TIMEOUTS))
        self._set(name, self.dice.choice(TIMEOUTS[name]), self.dice.uniform(0.5, 3))
        self.counts["timeouts changed"] += 1

    def cut(self) -> None:
        number = self.proxy.cut(self.dice.choice([0.2, 0.5, 1.0]), self.dice)
        self.counts["network cuts"] += number > 0
        self.counts["connections cut"] += number
        self.tell(f"{number} connections cut")

    def stall(self) -> None:
        seconds = self.dice.uniform(0.2, 3)
        self.tell(f"network stalled for {seconds:.1f} s")
        self.proxy.stall(seconds)
        self.counts["network stalls"] += 1

    def delay(self) -> None:
        self.proxy.delay = self.dice.choice([0.001, 0.005, 0.02])
        seconds = self.dice.uniform(0.5, 3)
        self.tell(f"network delayed by {self.proxy.delay} s for {seconds:.1f} s")
        self.end.wait(seconds)
        self.proxy.delay = 0.0
        self.counts["network delays"] += 1
