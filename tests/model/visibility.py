"""Visibility: no reader moves past a position of its channel that may still appear.

One publisher with up to two statements, each with the floor of the channel or of every channel, a
savepoint and a rollback to it, PREPARE, commit, rollback or crash; another one with one statement
that moves the sequence beside it. A reader of the channel, which reads the locks piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.search import Result, Step, Wrong, search

MUTANTS = {
    "floor after nextval": "the position is drawn before the floor is held",
    "a flag in the program": "what remembers the floor survives ROLLBACK TO SAVEPOINT",
    "one snapshot": "the rows are read under a snapshot older than the horizon",
    "locks before sequence": "the floors are read before the sequence",
    "off by one": "the floor is one too high, as when is_called is forgotten",
    "holder by pid": "a floor and the log's lock are tied by pid, which PREPARE takes away",
    "only the channel's floor": "the reader ignores floors of every channel",
    "another channel's floor": "a row goes to a channel whose floor is not held",
    "locks released first": "a commit releases its locks before its rows are visible",
}


class Publisher(NamedTuple):
    at: str = "free"
    kind: str = ""
    """What the statement at work declares: its channel "a", or "*" for every channel."""
    value: int = 0
    floors: tuple[tuple[str, int, int], ...] = ()
    """Kind, floor and savepoint level of each lock."""
    held: tuple[tuple[str, int], ...] = ()
    """What the setting remembers: kind and level."""
    drawn: tuple[tuple[int, int], ...] = ()
    """Position and level of the rows."""
    statements: int = 0
    level: int = 0
    has_log: bool = False
    """Whether it holds the RowExclusiveLock on the log."""
    shows_log_pid: bool = True
    shows_floor_pid: bool = True


class State(NamedTuple):
    last: int = 0
    one: Publisher = Publisher()
    two: Publisher = Publisher()
    at: str = "free"
    """The reader: free, then the sequence, the publishers' lock on the log, the floors, the rows."""
    seen: int = 0
    holds_log: tuple[str, ...] = ()
    """Of each publisher read so far: "" or how its lock on the log is tied to its floors."""
    horizon: int = 0
    cursor: int = 0
    visible: tuple[int, ...] = ()
    snapshot: tuple[int, ...] = ()
    """Both are kept for the mutant that needs them only."""


DONE = Publisher("done")
STATEMENTS = {"one": 2, "two": 1}


def steps(state: State, mutant: str) -> Iterator[Step]:
    for name in ("one", "two"):
        yield from _publisher(state, name, mutant)
    yield from _reader(state, mutant)


def _publisher(state: State, name: str, mutant: str) -> Iterator[Step]:
    own: Publisher = getattr(state, name)

    def to(label: str, following: Publisher, **changes: object) -> Step:
        return f"{name} {label}", state._replace(**{name: following}, **changes)

    if own.at == "free":
        may_insert = own.statements < STATEMENTS[name] and own.shows_log_pid
        if may_insert:
            for kind in ("a", "*") if name == "one" else ("a",):
                yield to(f"INSERT ({kind})", own._replace(at="begun", kind=kind, has_log=True))
        if may_insert and name == "one" and own.level == 0:
            yield to("SAVEPOINT", own._replace(level=1))
        if own.level == 1:
            held = own.held if mutant == "a flag in the program" else _below(own.held)
            yield to(
                "ROLLBACK TO",
                own._replace(
                    level=2, drawn=_below(own.drawn), floors=_below(own.floors), held=held
                ),
            )
        if own.has_log and own.shows_log_pid and name == "one":
            yield to("PREPARE: the log's lock", own._replace(at="preparing", shows_log_pid=False))
        if own.has_log:
            yield to("rolled back", DONE)
            yield from _commit(state, own, to, mutant)
    elif own.at == "begun":
        is_covered = any(kind in (own.kind, "*") for kind, _ in own.held)
        if mutant == "floor after nextval" and not is_covered:
            yield to("nextval", _draw(own, state.last, "late"), last=state.last + 1)
        elif is_covered:
            yield to("floor is held", own._replace(at="draw"))
        else:
            wrongly = 1 if mutant == "off by one" else 0
            yield to("last_value", own._replace(at="lock", value=state.last + wrongly))
    elif own.at in ("lock", "late"):
        kind = "b" if mutant == "another channel's floor" and own.kind == "a" else own.kind
        value = own.value if own.at == "lock" else state.last
        yield to(
            f"pg_try_advisory_xact_lock_shared ({kind}, {value})",
            own._replace(
                at="draw" if own.at == "lock" else "free",
                value=0,
                floors=(*own.floors, (kind, value, own.level)),
                held=(*own.held, (own.kind, own.level)),
            ),
        )
    elif own.at == "draw":
        yield to("nextval", _draw(own, state.last, "free"), last=state.last + 1)
    elif own.at == "preparing":
        yield to("PREPARE: the floors", own._replace(at="free", shows_floor_pid=False))
    elif own.at == "committing":  # the rows are visible, the locks are still there
        yield to("releases its locks", DONE)
    elif own.at == "released":  # the mutant: the locks are gone, the rows are not visible yet
        yield from _appear(state, own, to)


def _draw(own: Publisher, last: int, at: str) -> Publisher:
    drawn = (*own.drawn, (last + 1, own.level))
    return own._replace(at=at, drawn=drawn, statements=own.statements + 1)


def _below(values: tuple) -> tuple:
    return tuple(each for each in values if each[-1] == 0)


def _commit(state: State, own: Publisher, to, mutant: str) -> Iterator[Step]:
    if mutant == "locks released first":
        yield to("releases its locks", own._replace(at="released", floors=(), has_log=False))
    else:
        yield from _appear(state, own, to)


def _appear(state: State, own: Publisher, to) -> Iterator[Step]:
    passed = [position for position, _ in own.drawn if position <= state.cursor]
    label, following = to(
        "commits", DONE if own.at == "released" else own._replace(at="committing")
    )
    if passed:
        yield label, Wrong(f"position {passed[0]} appears below the cursor at {state.cursor}")
        return
    positions = tuple(sorted({*state.visible, *(position for position, _ in own.drawn)}))
    yield label, following._replace(visible=positions)


def _reader(state: State, mutant: str) -> Iterator[Step]:
    order = ["free", "sequence", "log one", "log two", "floors"]
    if mutant == "locks before sequence":
        order = ["free", "log one", "log two", "floors"]
    if state.at == "free":
        following = state._replace(snapshot=state.visible if mutant == "one snapshot" else ())
        if mutant == "locks before sequence":
            yield "reader begins", following._replace(at="log one", holds_log=())
        else:
            yield (
                "reader reads the sequence",
                following._replace(at="log one", seen=state.last, holds_log=()),
            )
    elif state.at in ("log one", "log two"):
        own: Publisher = state.one if state.at == "log one" else state.two
        tie = ("pid" if own.shows_log_pid else "no pid") if own.has_log else ""
        yield (
            f"reader reads the locks on the log of {state.at[4:]}",
            state._replace(at=order[order.index(state.at) + 1], holds_log=(*state.holds_log, tie)),
        )
    elif state.at == "floors":
        floors = [
            floor
            for own, tie in zip((state.one, state.two), state.holds_log, strict=True)
            for kind, floor, _ in own.floors
            if _counts(own, tie, kind, mutant)
        ]
        if mutant == "locks before sequence":
            yield (
                "reader reads the floors",
                state._replace(at="sequence", seen=min(floors, default=99), holds_log=()),
            )
        else:
            horizon = max(state.cursor, min([state.seen, *floors]))
            yield (
                f"reader reads the floors: horizon {horizon}",
                state._replace(at="rows", horizon=horizon, seen=0, holds_log=()),
            )
    elif state.at == "sequence":
        horizon = max(state.cursor, min(state.seen, state.last))
        yield (
            f"reader reads the sequence: horizon {horizon}",
            state._replace(at="rows", horizon=horizon, seen=0),
        )
    elif state.at == "rows":
        following = state._replace(at="free", cursor=state.horizon, horizon=0, snapshot=())
        if mutant == "one snapshot":
            unseen = [
                position
                for position in state.visible
                if state.cursor < position <= state.horizon and position not in state.snapshot
            ]
            if unseen:
                yield "reader reads the rows", Wrong(f"position {unseen[0]} is not in the snapshot")
                return
        yield f"reader reads the rows up to {state.horizon}", following


def _counts(own: Publisher, tie: str, kind: str, mutant: str) -> bool:
    if kind == "b" or (kind == "*" and mutant == "only the channel's floor"):
        return False
    if mutant == "holder by pid":
        return tie != "" and (tie == "pid") == own.shows_floor_pid and own.shows_floor_pid
    return tie != ""


def run(mutant: str = "") -> Result:
    keep_visible = mutant == "one snapshot"

    def moves(state: State) -> Iterator[Step]:
        for label, following in steps(state, mutant):
            if not keep_visible and isinstance(following, State) and following.visible:
                following = following._replace(visible=())
            yield label, following

    return search(State(), moves)


PROPERTY = "visibility: no position of the channel appears below the cursor"
