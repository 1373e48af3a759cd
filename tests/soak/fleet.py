"""The processes of a rack: supervisors, workers and publishers, started again when they are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.soak.findings import Finding
from tests.support.processes import ROOT

CONSUME = ["-m", "django", "consume", "--grace", "20"]
WORKERS = [
    [*CONSUME, "single", "wide", "stack", "leased", "--processes", "2"],
    [*CONSUME, "failing", "chain", "followers", "leased", "wide"],
    [*CONSUME, "copy", "ledger", "spare", "single", "leased"],
]
PUBLISHERS = 3


class Member:
    """One command that is kept running; its output goes to a file."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self.arguments, self.log, self.environment = arguments, log, environment
        self.is_supervisor = "--processes" in arguments
        self.is_stopped = False
        """Whether it is not to be started again."""
        self.killed: set[int] = set()
        """Process ids that the rack has killed."""
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, *self.arguments],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=self.environment,
            )

    def processes(self) -> list[int]:
        """The ids of the processes that handle messages."""
        return children(self.process.pid) if self.is_supervisor else [self.process.pid]

    def revive(self) -> str | None:
        """Start the command again when it has ended; tell when it was not killed."""
        code = self.process.poll()
        if code is None or self.is_stopped:
            return None
        is_killed = self.process.pid in self.killed
        text = f"{' '.join(self.arguments)} ended by itself with code {code}:\n{self.tail()}"
        self.process = self._start()
        return None if is_killed else text

    def tail(self, lines: int = 25) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


class Fleet:
    """All members; a thread looks after them."""

    def __init__(self, folder: Path, environment: dict[str, str], seed: str) -> None:
        self.folder = folder
        self.workers = [
            Member(arguments, folder / f"worker-{number}.log", environment)
            for number, arguments in enumerate(WORKERS)
        ]
        self.publishers = [
            Member(
                ["-m", "tests.soak.publisher", f"{seed}-{number}", str(folder / f"acks-{number}")],
                folder / f"publisher-{number}.log",
                environment,
            )
            for number in range(PUBLISHERS)
        ]
        self.supervisors = {m.process.pid for m in self.workers if m.is_supervisor}
        self.findings: list[Finding] = []
        self.lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="fleet", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._end.wait(0.2):
            with self.lock:
                for member in [*self.workers, *self.publishers]:
                    if finding := member.revive():
                        self.findings.append(Finding("ended by itself", finding))
                    if member.is_supervisor:
                        self.supervisors.add(member.process.pid)

    def kill(self, member: Member, pid: int, number: int) -> bool:
        """Send a signal to a process of a member; tell whether it was there."""
        with self.lock, contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                member.killed.add(pid)
            os.kill(pid, number)
            return True
        return False

    def acknowledged(self) -> set[int]:
        """The numbers of the messages whose commit a publisher saw."""
        found: set[int] = set()
        for path in self.folder.glob("acks-*"):
            found.update(
                int(n) for n in path.read_text().splitlines(keepends=True) if n[-1] == "\n"
            )
        return found

    def stop_publishers(self) -> None:
        self._stop(self.publishers, 120)

    def stop(self) -> None:
        """Stop all processes; one that does not end, or with a code other than 0, is a finding.

        A publisher may have been started anew a moment ago: SIGTERM ends it while it is imported.
        """
        self._end.set()
        self._thread.join()
        self._stop(self.workers, 120)
        self._stop(self.publishers, 120)

    def _stop(self, members: list[Member], seconds: float) -> None:
        with self.lock:
            members = [member for member in members if not member.is_stopped]
            for member in members:
                member.is_stopped = True
                member.killed.add(member.process.pid)
                member.process.terminate()
        deadline = time.monotonic() + seconds
        for member in members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.1, deadline - time.monotonic()))
            code = member.process.poll()
            is_starting = code == -signal.SIGTERM and member in self.publishers
            if code != 0 and not is_starting:
                what = f"ended with code {code}" if code is not None else "did not end"
                text = f"{member.arguments} was stopped and {what}:\n{member.tail()}"
                self.findings.append(Finding("did not stop", text))
                member.process.kill()


def children(pid: int) -> list[int]:
    """The ids of the child processes of a process, on Linux."""
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def manage(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a management command of the rack's project."""
    return subprocess.run(
        [sys.executable, "-m", "django", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
