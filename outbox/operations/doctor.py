"""Check a database alias for what would make the log wrong, slow or late, with the fix."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction

from .. import database, outages, positions
from ..changes import installed
from ..checks.databases import OLDEST_POSTGRES
from ..conf import log_alias, settings
from ..exceptions import RightsMissing
from ..outages import Meaning
from ..retention import segments
from ..sql import one_row, run_statement, scalar
from . import retention_status, server_limits
from .findings import Answer, Finding
from .sessions import floor_holders, see_horizon

FEWEST_AHEAD = 2
"""Segments that should lie ahead."""
LONG_HOLD = 60.0
"""Seconds after which a transaction that holds the horizon back is worth a warning."""
DIRECT_ALIAS = 'Set OUTBOX["LISTEN"] to an alias of a direct connection, or to False to poll.'
ECHO_SECONDS = 2.0
"""How long to wait for a NOTIFY of one's own."""


def run_checks(using: str | None = None) -> list[Finding]:
    """Return the finding of every check, in a fixed order."""
    using = log_alias(using)
    if connections[using].vendor != "postgresql":
        vendor = connections[using].vendor
        fix = "Route the app 'outbox' to a PostgreSQL database."
        return [Finding("server", "fail", f"this is {vendor}", fix)]
    try:
        connections[using].ensure_connection()
    except OperationalError as error:
        text = str(error).strip().partition("\n")[0]
        return [Finding("server", "fail", text, f'Is it up, and DATABASES["{using}"] right?')]
    return [Finding(name, *_run_check(check, using)) for name, check in CHECKS.items()]


def _run_check(check: Callable[[str], Answer], using: str) -> Answer:
    try:
        with _savepoint(using):
            return check(using)
    except (DatabaseError, InterfaceError) as error:
        text = str(error).strip().partition("\n")[0]
        if outages.meaning(error, using) is Meaning.OUTAGE:
            outages.discard(using)
            return "fail", f"the session ended: {text}", "Run the command again."
        if isinstance(error, RightsMissing):
            return "fail", text, "Give this role the rights of a reader, or use another role."
        fix = "Run `manage.py migrate outbox`; if that was done, see the findings above."
        return "fail", text, fix


def _savepoint(using: str) -> contextlib.AbstractContextManager[Any]:
    """Keep an error from spoiling a surrounding transaction, if there is one."""
    is_inside = connections[using].in_atomic_block
    return transaction.atomic(using=using) if is_inside else contextlib.nullcontext()


def _server(using: str) -> Answer:
    text = scalar("server_text", using)
    name = text.partition(" on ")[0]
    if "CockroachDB" in text or scalar("has_citus", using):
        return "fail", name, "Use plain PostgreSQL: sequences, locks and NOTIFY differ here."
    if scalar("describe_log", using) < OLDEST_POSTGRES:
        return "fail", name, "Use PostgreSQL 14 or newer."
    return "ok", name, ""


def _primary(using: str) -> Answer:
    if not scalar("is_standby", using):
        return "ok", "this server takes writes", ""
    fix = "Point the alias at the primary: a standby does not see the locks of publishers."
    return "fail", "this server is a standby", fix


def _sequence(using: str) -> Answer:
    _, cache, _ = one_row("describe_log", using) or (None, None, None)
    if cache is None:
        return "fail", "the log does not exist", "Run `manage.py migrate outbox`."
    if cache == 1:
        return "ok", "its cache is 1", ""
    fix = "ALTER SEQUENCE outbox_message_position_seq CACHE 1;"
    return "fail", f"its cache is {cache}: readers skip messages", fix


def _positions(using: str) -> Answer:
    faults = positions.find_faults(using)
    if not faults:
        return "ok", "sequence, log and cursors agree", ""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return "fail", faults[0].detail + more, faults[0].fix


def _functions(using: str) -> Answer:
    fault = positions.misplaced_functions(using)
    return ("fail", *fault) if fault else ("ok", "they look for the log in its schema", "")


def _triggers(using: str) -> Answer:
    _, _, missing = one_row("describe_log", using) or (None, None, [])
    if missing:
        fix = "Run `manage.py pgtrigger install`; `pgtrigger enable` leaves out role replica."
        return "fail", f"missing or disabled: {', '.join(missing)}", fix
    bare = [each.name for each in segments.list_segments(using) if not each.guarded]
    if bare:
        fix = (
            f"ALTER TABLE {bare[0]} ENABLE TRIGGER outbox_segment_guard, "
            "ENABLE REPLICA TRIGGER outbox_segment_floor;"
        )
        detail = "outbox_segment_guard or outbox_segment_floor is missing or disabled"
        return "fail", f"{detail} on {', '.join(bare)}", fix
    if partial := positions.origin_triggers(using):
        return "warn", *partial
    return "ok", "present and enabled", ""


def _captures(using: str) -> Answer:
    found = installed.run_checks(using)
    if not found:
        return "ok", "every declared capture is installed", ""
    first = min(found, key=lambda finding: not finding.is_error)
    more = (
        f" (and {len(found) - 1} more: `manage.py check --database {using}`)" if found[1:] else ""
    )
    return "fail" if first.is_error else "warn", first.detail + more, first.fix


def _isolation(using: str) -> Answer:
    with transaction.atomic(using=using):
        level = scalar("read_isolation", using)
    if level == "read committed":
        return "ok", level, ""
    fix = f'Set no "isolation_level" in OPTIONS of DATABASES["{using}"], nor in the server.'
    return "fail", f"{level}: a reader's snapshot is older than its horizon", fix


def _listening_alias(using: str) -> str | None:
    listen = settings().listen
    return listen if isinstance(listen, str) else using if listen else None


def _pooler(using: str) -> Answer:
    alias = _listening_alias(using)
    seen = scalar("see_backend", alias or using)
    expected = database.backend_pid(connections[alias or using].connection)
    if seen == expected:
        return "ok", "none", ""
    detail = f"the session answers as process {seen}, the driver knows {expected}"
    if alias is None:
        return "ok", f"{detail}; LISTEN is off, workers poll", ""
    return "warn", detail, f"{DIRECT_ALIAS[:-1]}; a pooler in session mode is harmless."


def _listen(using: str) -> Answer:
    alias = _listening_alias(using)
    if alias is None:
        return "ok", "off: workers poll", ""
    if connections[alias].in_atomic_block:
        return "warn", "not tried inside a transaction", "Run the doctor outside atomic()."
    if not database.is_same_database(alias, using):
        fix = 'Set OUTBOX["LISTEN"] to an alias that leads to the same database on the same server.'
        return "fail", f"alias {alias!r} leads to another database: workers only poll", fix
    if _notify_roundtrip(alias):
        return "ok", "a NOTIFY comes back", ""
    return "warn", f"no NOTIFY within {ECHO_SECONDS:.0f} s: workers only poll", DIRECT_ALIAS


def _notify_roundtrip(alias: str) -> bool:
    listener = database.Listener(alias)
    listener.listen(["outbox_doctor"])
    try:
        with connections[alias].cursor() as cursor:
            run_statement(cursor, "notify_doctor")
        return listener.wait(ECHO_SECONDS)
    finally:
        listener.unlisten()


def _prepared(using: str) -> Answer:
    holders = [each for each in floor_holders(using) if each.prepared]
    if not holders:
        return "ok", "none holds the horizon back", ""
    first = holders[0]
    detail = f"{first} holds the horizon back at {first.floor} for {first.seconds:.0f} s"
    gid = first.prepared.replace("'", "''")
    return "fail", detail, f"COMMIT PREPARED '{gid}'; or ROLLBACK PREPARED '{gid}';"


def _segments(using: str) -> Answer:
    ahead = segments.count_ahead(segments.list_segments(using))
    fix = f"Run `manage.py outbox segments --ahead {2 * FEWEST_AHEAD}`."
    if segments.default_has_rows(using):
        return "warn", f"messages lie in the default segment; {ahead} segments are ahead", fix
    if ahead < FEWEST_AHEAD:
        return "warn", f"{ahead} left ahead", fix
    return "ok", f"{ahead} ahead, the default one is empty", ""


def _horizon(using: str) -> Answer:
    state = see_horizon(using)
    held_by, place = state.held_by, f"{state.horizon} of {state.last_position}"
    if held_by is None or held_by.seconds < LONG_HOLD:
        return "ok", f"at {place}", ""
    detail = f"{held_by} holds it at {place} for {held_by.seconds:.0f} s"
    if held_by.prepared:
        return "warn", detail, "End the prepared transaction."
    return "warn", detail, f"End its transaction, or SELECT pg_terminate_backend({held_by.pid});"


CHECKS: dict[str, Callable[[str], Answer]] = {
    "server": _server,
    "primary": _primary,
    "isolation": _isolation,
    "sequence": _sequence,
    "functions": _functions,
    "positions": _positions,
    "triggers": _triggers,
    "captures": _captures,
    "pooler": _pooler,
    "listen": _listen,
    "idle-timeout": server_limits.idle_timeout,
    "timeouts": server_limits.timeouts,
    "locks": server_limits.locks,
    "prepared": _prepared,
    "horizon": _horizon,
    "segments": _segments,
    "retention": retention_status.run_checks,
}
