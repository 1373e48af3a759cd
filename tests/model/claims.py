"""Claims: a cursor moves back by a reset only, each message is handled once, none is passed over.

Two workers of one range with two messages, and an operator who resets it once. Exactly once: the
handler's effects commit with the cursor; a commit may fail, its reply may be lost, and then the
worker lets the range wait in another transaction. Leased: the effects come first; a lease may
expire at any moment, and a worker that stood still goes on. Any worker may be killed at any step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.search import Result, Step, Wrong, search

MESSAGES = 2
EXACTLY_ONCE = "claims, exactly once: handled once each, the cursor moves back by a reset only"
LEASED = "claims, leased: nothing passed over, only the holder of the lease writes or renews"
MUTANTS = {
    "exactly once": {
        "back-off at an old position": "a back-off writes the position of its claim unseen",
        "no lock, no position": "a claim locks nothing, an advance asks for the generation only",
    },
    "leased": {
        "progress before the handler": "the cursor is moved before the handler has run",
        "progress without the token": "progress is written by who lost the lease",
        "progress without the generation": "progress is written over a reset",
        "renewal without the token": "a lease is renewed after it was lost",
        "the token stays": "taking a lease over raises no token",
    },
}


class Worker(NamedTuple):
    at: str = "free"
    position: int = 0
    generation: int = 0
    token: int = 0
    """What the row held when it was claimed."""


class State(NamedTuple):
    position: int = 0
    generation: int = 0
    token: int = 0
    lock: str = ""
    """Who holds the lock of the cursor row."""
    holder: str = ""
    """Who has leased the range last."""
    is_leased: bool = False
    one: Worker = Worker()
    two: Worker = Worker()
    effects: tuple[int, ...] = (0,) * MESSAGES
    """How often each message was handled since the last reset."""
    takeovers: int = 0


FREE = Worker()
MOST_TAKEOVERS = 4


def exactly_once(state: State, mutant: str) -> Iterator[Step]:
    for name in ("one", "two"):
        yield from _transactional(state, name, mutant)
    yield from _reset(state)


def _transactional(state: State, name: str, mutant: str) -> Iterator[Step]:
    own: Worker = getattr(state, name)

    def to(label: str, following: Worker, **changes: object) -> Step:
        return f"{name} {label}", state._replace(**{name: following}, **changes)

    is_loose = mutant == "no lock, no position"
    held = "" if is_loose else name
    freed = {} if is_loose else {"lock": ""}
    if own.at == "free" and state.position < MESSAGES and not state.lock:
        yield to("claims", Worker("claimed", state.position, state.generation), lock=held)
    elif own.at == "claimed":
        yield to("runs the handler", own._replace(at="handled"))
        yield to("is killed", FREE, **freed)
    elif own.at == "handled":
        advanced = _advance(state, own, is_loose)
        if isinstance(advanced, Wrong):
            yield f"{name} commits", advanced
            return
        yield to("commits", FREE, **freed, **advanced)
        yield to("commits and its reply is lost", own._replace(at="back-off"), **freed, **advanced)
        yield to("cannot commit", own._replace(at="back-off"), **freed)
        yield to("is killed", FREE, **freed)
    elif own.at == "back-off" and not state.lock:
        is_same = (state.position, state.generation) == (own.position, own.generation)
        is_seen = mutant != "back-off at an old position" or state.generation != own.generation
        if not is_seen and state.position > own.position:
            text = f"the cursor moves back from {state.position} to {own.position}"
            yield f"{name} backs off", Wrong(text)
            return
        yield to("backs off" if is_same else "sees that the row has changed", FREE)


def _advance(state: State, own: Worker, is_loose: bool) -> dict[str, object] | Wrong:
    is_current = state.generation == own.generation
    if not is_current or (not is_loose and state.position != own.position):
        return {}
    effects = _handled(state.effects, own.position)
    if effects[own.position] > 1:
        return Wrong(f"message {own.position + 1} is handled twice")
    return {"position": own.position + 1, "effects": effects}


def _handled(effects: tuple[int, ...], index: int) -> tuple[int, ...]:
    return (*effects[:index], min(2, effects[index] + 1), *effects[index + 1 :])


def _reset(state: State) -> Iterator[Step]:
    if state.generation == 0 and not state.lock:
        yield (
            "operator resets",
            state._replace(position=0, generation=1, is_leased=False, effects=(0,) * MESSAGES),
        )


def leased(state: State, mutant: str) -> Iterator[Step]:
    for name in ("one", "two"):
        yield from _leased(state, name, mutant)
    if state.is_leased:
        yield "the lease expires", state._replace(is_leased=False)
    yield from _reset(state)


def _leased(state: State, name: str, mutant: str) -> Iterator[Step]:
    own: Worker = getattr(state, name)

    def to(label: str, following: Worker, **changes: object) -> Step:
        return f"{name} {label}", state._replace(**{name: following}, **changes)

    if own.at == "free":
        if state.position < MESSAGES and not state.is_leased and state.takeovers < MOST_TAKEOVERS:
            token = state.token + (mutant != "the token stays")
            yield to(
                "takes the lease",
                Worker("leased", state.position, state.generation, token),
                token=token,
                holder=name,
                is_leased=True,
                takeovers=state.takeovers + 1,
            )
        return
    yield to("is killed", FREE)
    if own.at == "leased":
        is_early = mutant == "progress before the handler"
        effects = state.effects if is_early else _handled(state.effects, own.position)
        yield to("runs the handler", own._replace(at="handled"), effects=effects)
        yield from _renew(state, own, name, mutant, to)
    elif own.at == "handled":
        is_mine = mutant == "progress without the token" or state.token == own.token
        is_current = (
            mutant == "progress without the generation" or state.generation == own.generation
        )
        if not (is_mine and is_current and state.position == own.position):
            yield to("is refused and stops", FREE)
        elif state.effects[own.position] == 0:
            yield f"{name} writes progress", Wrong(f"message {own.position + 1} is passed over")
        elif state.holder != name and state.generation == own.generation:
            yield (
                f"{name} writes progress",
                Wrong(f"{name} writes while {state.holder} is the holder"),
            )
        else:
            is_last = own.position + 1 == MESSAGES
            following = FREE if is_last else own._replace(at="leased", position=own.position + 1)
            yield to("writes progress", following, position=own.position + 1, is_leased=not is_last)


def _renew(state: State, own: Worker, name: str, mutant: str, to) -> Iterator[Step]:
    is_mine = mutant == "renewal without the token" or state.token == own.token
    if is_mine and state.generation == own.generation:
        if state.holder != name:
            yield f"{name} renews", Wrong(f"{name} renews the lease of {state.holder}")
        else:
            yield to("renews", own, is_leased=True)
    else:
        yield to("cannot renew and stops", FREE)


def at_end(state: State) -> str:
    if state.position < MESSAGES and state.takeovers < MOST_TAKEOVERS:
        return f"the cursor is stuck at {state.position}"
    return ""


def run(mode: str, mutant: str = "") -> Result:
    steps = exactly_once if mode == "exactly once" else leased
    return search(State(), lambda state: steps(state, mutant), at_end)
