"""Wake-up: no message waits while the worker sleeps, without any poll interval.

Two publishers, of two statements and of one, which commit or roll back; a worker that looks, takes
the idle lock, looks again and sleeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.search import Result, Step, Wrong, search

PROPERTY = "wake-up: the worker does not sleep while a message waits, and passes none over"
MUTANTS = {
    "no second look": "the worker sleeps right after it took the idle lock",
    "sleeps beside a publisher": "the worker sleeps while a position above its horizon is drawn",
    "no idle lock while asleep": "the worker gives the lock back before it sleeps",
    "looks at the idle lock first": "the publisher looks for sleepers before it takes its floor",
    "floor after nextval": "the position is drawn before the floor is held",
}
STATEMENTS = {"one": 2, "two": 1}


class Publisher(NamedTuple):
    at: str = "free"
    statements: int = 0
    floor: int = -1
    drawn: tuple[int, ...] = ()
    notifies: bool = False


class State(NamedTuple):
    last: int = 0
    one: Publisher = Publisher()
    two: Publisher = Publisher()
    visible: tuple[int, ...] = ()
    at: str = "look"
    """The worker: look, read, decide, lock, sleep."""
    horizon: int = 0
    cursor: int = 0
    is_idle: bool = False
    """Whether it has taken the idle lock and looks again, or sleeps."""
    has_lock: bool = False
    socket: bool = False
    """Whether a notification waits there."""


DONE = Publisher("done")


def steps(state: State, mutant: str) -> Iterator[Step]:
    for name in ("one", "two"):
        yield from _publisher(state, name, mutant)
    yield from _worker(state, mutant)


def _publisher(state: State, name: str, mutant: str) -> Iterator[Step]:
    own: Publisher = getattr(state, name)
    other = state.two if name == "one" else state.one

    def to(label: str, following: Publisher, **changes: object) -> Step:
        return f"{name} {label}", state._replace(**{name: following}, **changes)

    looks_first = mutant == "looks at the idle lock first"
    if own.at == "free":
        if own.statements < STATEMENTS[name]:
            yield to("INSERT", own._replace(at="try" if looks_first else "floor"))
        if own.statements:
            yield to("commits", own._replace(at="committed"), visible=(*state.visible, *own.drawn))
            yield to("rolls back", DONE)
    elif own.at == "floor":
        if mutant == "floor after nextval":
            yield to(
                "nextval",
                own._replace(at="late", drawn=(*own.drawn, state.last + 1)),
                last=state.last + 1,
            )
        else:
            floor = own.floor if own.floor >= 0 else state.last
            yield to("takes its floor", own._replace(at="draw", floor=floor))
    elif own.at == "late":
        floor = own.floor if own.floor >= 0 else state.last
        yield to("takes its floor", own._replace(at="try", floor=floor))
    elif own.at == "draw":
        drawn = (*own.drawn, state.last + 1)
        after = {"at": "free", "statements": own.statements + 1} if looks_first else {"at": "try"}
        yield to("nextval", own._replace(drawn=drawn, **after), last=state.last + 1)
    elif own.at == "try":
        # Lock and unlock are two steps: meanwhile others find the key locked.
        if state.has_lock or other.at == "locked":
            yield to("finds the idle lock held", _looked(own, looks_first)._replace(notifies=True))
        else:
            yield to("pg_try_advisory_lock", own._replace(at="locked"))
    elif own.at == "locked":
        yield to("pg_advisory_unlock", _looked(own, looks_first))
    elif own.at == "committed":
        yield to("releases its locks, NOTIFY", DONE, socket=state.socket or own.notifies)


def _looked(own: Publisher, looks_first: bool) -> Publisher:
    if looks_first:
        return own._replace(at="floor")
    return own._replace(at="free", statements=own.statements + 1)


def _worker(state: State, mutant: str) -> Iterator[Step]:
    if state.at == "look":
        floors = [p.floor for p in (state.one, state.two) if p.floor >= 0]
        horizon = max(state.cursor, min([state.last, *floors]))
        yield f"worker reads the horizon {horizon}", state._replace(at="read", horizon=horizon)
    elif state.at == "read":
        drawn = [p for own in (state.one, state.two) if own.at != "committed" for p in own.drawn]
        passed = [position for position in drawn if position <= state.horizon]
        found = any(state.cursor < position <= state.horizon for position in state.visible)
        following = state._replace(cursor=state.horizon, horizon=state.horizon)
        if passed:
            yield "worker reads", Wrong(f"the worker passes {passed[0]} over")
        elif found:
            yield (
                "worker handles messages",
                following._replace(at="look", is_idle=False, has_lock=False, socket=False),
            )
        else:
            yield "worker finds nothing", following._replace(at="decide")
    elif state.at == "decide":
        if state.last > state.horizon and mutant != "sleeps beside a publisher":
            yield (
                "worker waits for a publisher",
                state._replace(at="look", is_idle=False, has_lock=False),
            )
        elif not state.is_idle:
            yield "worker decides to be idle", state._replace(at="lock")
        else:
            keeps = mutant != "no idle lock while asleep"
            yield "worker sleeps", state._replace(at="sleep", has_lock=state.has_lock and keeps)
    elif state.at == "lock":
        yield from _become_idle(state, mutant)
    elif state.at == "sleep" and state.socket:
        yield "worker wakes", state._replace(at="look", socket=False)


def _become_idle(state: State, mutant: str) -> Iterator[Step]:
    if "locked" in (state.one.at, state.two.at):
        yield "worker cannot take the idle lock now", state._replace(at="look")
    else:
        at = "sleep" if mutant == "no second look" else "look"
        yield "worker takes the idle lock", state._replace(at=at, is_idle=True, has_lock=True)


def at_end(state: State) -> str:
    waiting = [position for position in state.visible if position > state.cursor]
    return f"the worker sleeps while {waiting[0]} waits" if waiting else ""


def run(mutant: str = "") -> Result:
    return search(State(), lambda state: steps(state, mutant), at_end)
