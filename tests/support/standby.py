"""A primary and a standby by streaming replication, of which the primary is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from outbox.embedded import Server, find_programs, keeper
from tests.support.harness import execute, value
from tests.support.processes import driver, open_session, wait_until

NAME = "site"
OPTIONS = {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off"}
"""Commits wait for the standby, if it is synchronous; a kill of processes loses no file."""


class Pair:
    """Two servers in temporary folders, on Unix sockets. `primary` and `standby` are sessions."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.data = folder / "primary"
        first = stack.enter_context(Server(self.data, durable=True, options=OPTIONS))
        first.create_database(NAME)
        self.primary = open_session(first.settings(NAME))
        copy = folder / "standby"
        address = first.settings(NAME)
        where = ("-h", str(address["HOST"]), "-p", str(address["PORT"]), "-U", "postgres")
        program = find_programs() / "pg_basebackup"
        keeper.run(program, *where, "-D", copy, "-c", "fast", "--no-sync")
        (copy / "standby.signal").touch()
        for path in (copy, *copy.rglob("*")):
            os.chown(path, self.data.stat().st_uid, self.data.stat().st_gid, follow_symlinks=False)
        conninfo = " ".join(f"{name}={address[name.upper()]}" for name in ("host", "port", "user"))
        options = {**OPTIONS, "primary_conninfo": f"{conninfo} application_name=standby"}
        second = stack.enter_context(Server(copy, durable=True, options=options))
        self.standby = open_session(second.settings(NAME))
        hosts = ",".join(str(each.settings(NAME)["HOST"]) for each in (first, second))
        self.url = (
            f"postgres://postgres@/{NAME}?host={quote(hosts, safe='')}&port={address['PORT']}"
            "&target_session_attrs=read-write"
        )
        """Leads to the one of the two that takes writes, as a URL of a real pair does."""
        self.second: dict[str, Any] = second.settings(NAME)
        wait_until(lambda: self.replication() is not None)

    def replication(self) -> str | None:
        """Return "async" or "sync", None while the standby does not stream."""
        statement = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'"
        rows = execute(self.primary, statement)
        return str(rows[0][0]) if rows else None

    def make_synchronous(self) -> None:
        """Let each commit of the primary wait until the standby has it."""
        execute(self.primary, "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        execute(self.primary, "SELECT pg_reload_conf()")
        wait_until(lambda: self.replication() == "sync")

    def cut(self) -> None:
        """Freeze the process of the standby that receives, so that it falls behind."""
        self.receiver = int(value(self.standby, "SELECT pid FROM pg_stat_wal_receiver"))
        os.kill(self.receiver, signal.SIGSTOP)

    def kill_primary(self) -> None:
        """Kill all processes of the primary at once."""
        postmaster = int((self.data / "postmaster.pid").read_text().split("\n")[0])
        for pid in (postmaster, *children(postmaster)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if hasattr(self, "receiver"):
            os.kill(self.receiver, signal.SIGKILL)

    def promote(self) -> None:
        """Make the standby the primary."""
        wait_until(lambda: self._ask("SELECT pg_promote(false) IS NOT NULL"))
        wait_until(lambda: self._ask("SELECT NOT pg_is_in_recovery()"), 120)
        self.standby = open_session(self.second)

    def _ask(self, question: str) -> bool:
        """Ask the standby in a new session; false while it starts, or replays what is in the way."""
        with contextlib.suppress(driver.Error):
            session = open_session(self.second)
            try:
                return bool(value(session, question))
            finally:
                session.close()
        return False


def children(pid: int) -> list[int]:
    """Return the processes that a process started, from /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(status.parent.name))
    return found


@contextlib.contextmanager
def replicated() -> Iterator[Pair]:
    """Start a pair; both servers end with the block."""
    folder = Path(tempfile.mkdtemp(prefix="outbox-pair-"))
    folder.chmod(0o755)
    try:
        with contextlib.ExitStack() as stack:
            yield Pair(folder, stack)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
