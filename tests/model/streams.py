"""Streams: a version is given once, without gaps, and a guard holds at its commit.

Two writers. Each reads the versions of the streams x and y, appends to one of them at the version
it read, locks the other one as its guard, and commits: to the same stream, or to one each. A
deadlock ends one of them, as PostgreSQL does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.search import Result, Step, Wrong, search

PROPERTY = "streams: versions without gaps or doubles, guards hold at commit, no wait with a floor"
MUTANTS = {
    "no lock before the version": "an append compares the version without the lock of its stream",
    "guard without a lock": "a guard reads the other stream and does not lock it",
    "guard of the own stream": "a guard looks at the stream that is appended to only",
    "floor before the lock": "the floor is taken before the stream is locked",
}


class Writer(NamedTuple):
    at: str = "free"
    stream: int = 0
    seen: tuple[int, int] = (0, 0)
    has_floor: bool = False


class State(NamedTuple):
    versions: tuple[int, int] = (0, 0)
    """What is committed."""
    locks: tuple[str, str] = ("", "")
    """Who holds the row of each stream."""
    log: tuple[tuple[int, int], ...] = ()
    """Stream and version of the committed messages."""
    one: Writer = Writer()
    two: Writer = Writer()


DONE = Writer("done")


def steps(state: State, mutant: str) -> Iterator[Step]:
    for name in ("one", "two"):
        yield from _writer(state, name, mutant)
    one, two = state.one, state.two
    crossed = state.locks[1 - one.stream] == "two" and state.locks[1 - two.stream] == "one"
    if one.at == two.at == "appended" and crossed:
        yield "deadlock: one conflicts", _released(state, "one")._replace(one=DONE)


def _writer(state: State, name: str, mutant: str) -> Iterator[Step]:
    own: Writer = getattr(state, name)

    def to(label: str, following: Writer, **changes: object) -> Step:
        return f"{name} {label}", state._replace(**{name: following}, **changes)

    if own.at == "free":
        for stream in (0, 1):
            yield to("reads the versions", Writer("read", stream, state.versions))
    elif own.at == "read":
        if mutant == "floor before the lock" and not own.has_floor:
            yield to("takes its floor", own._replace(has_floor=True))
        elif mutant == "no lock before the version":
            is_same = state.versions[own.stream] == own.seen[own.stream]
            yield to("compares", own._replace(at="appended") if is_same else DONE)
        elif state.locks[own.stream] and own.has_floor:
            yield f"{name} locks the stream", Wrong(f"{name} waits for a stream with a floor held")
        elif not state.locks[own.stream]:
            is_same = state.versions[own.stream] == own.seen[own.stream]
            if is_same:
                locks = _with(state.locks, own.stream, name)
                yield to(
                    "locks the stream and appends",
                    own._replace(at="appended", has_floor=True),
                    locks=locks,
                )
            else:
                yield to("conflicts", DONE)
    elif own.at == "appended":
        yield from _guard(state, own, name, mutant, to)
        yield f"{name} rolls back", _released(state, name)._replace(**{name: DONE})
    elif own.at == "guarded":
        yield f"{name} commits", _commit(state, own, name)


def _guard(state: State, own: Writer, name: str, mutant: str, to) -> Iterator[Step]:
    other = 1 - own.stream
    if mutant == "guard of the own stream":
        yield to("guards nothing", own._replace(at="guarded"))
        return
    takes_lock = mutant != "guard without a lock"
    if takes_lock and state.locks[other]:
        return  # waits
    if state.versions[other] != own.seen[other]:
        yield f"{name} conflicts", _released(state, name)._replace(**{name: DONE})
        return
    locks = _with(state.locks, other, name) if takes_lock else state.locks
    yield to("locks the guarded stream", own._replace(at="guarded"), locks=locks)


def _commit(state: State, own: Writer, name: str) -> State | Wrong:
    other, version = 1 - own.stream, own.seen[own.stream] + 1
    if state.versions[other] != own.seen[other]:
        return Wrong(f"{name} commits while its guarded stream has moved on")
    if (own.stream, version) in state.log or version != state.versions[own.stream] + 1:
        return Wrong(f"version {version} of a stream is given twice, or leaves a gap")
    following = _released(state, name)._replace(**{name: DONE})
    return following._replace(
        versions=_with(state.versions, own.stream, version),
        log=tuple(sorted((*state.log, (own.stream, version)))),
    )


def _released(state: State, name: str) -> State:
    first, second = ("" if lock == name else lock for lock in state.locks)
    return state._replace(locks=(first, second))


def _with(values: tuple, index: int, value: object) -> tuple:
    return (value, values[1]) if index == 0 else (values[0], value)


def at_end(state: State) -> str:
    return "" if state.one == state.two == DONE else "both writers wait for ever"


def run(mutant: str = "") -> Result:
    return search(State(), lambda state: steps(state, mutant), at_end)
