"""An exhaustive search of the states that a model can reach.

A model has an initial state and a function that gives the steps from a state: a label and the next
state, or a label and a `Wrong`. States are tuples. The search goes breadth first, so a
counterexample is one of the shortest.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

State = Any
Step = tuple[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Wrong:
    """What a step leads to when it breaks a property."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a search found. `trace`: the labels of the steps that lead to what is wrong."""

    states: int
    wrong: str = ""
    trace: tuple[str, ...] = ()


def search(
    initial: State,
    steps: Callable[[State], Iterator[Step]],
    at_end: Callable[[State], str] = lambda state: "",
) -> Result:
    """Visit every reachable state, until something is wrong.

    `at_end`: what is wrong about a state from which no step leads; "" when it is a proper end.
    """
    came_from: dict[State, tuple[State, str] | None] = {initial: None}
    waiting = collections.deque([initial])
    while waiting:
        state = waiting.popleft()
        is_end = True
        for label, following in steps(state):
            is_end = False
            if isinstance(following, Wrong):
                trace = (*_trace(came_from, state), label)
                return Result(len(came_from), following.text, trace)
            if following not in came_from:
                came_from[following] = (state, label)
                waiting.append(following)
        if is_end and (text := at_end(state)):
            return Result(len(came_from), text, _trace(came_from, state))
    return Result(len(came_from))


def _trace(came_from: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    labels = []
    while (previous := came_from[state]) is not None:
        state, label = previous
        labels.append(label)
    return tuple(reversed(labels))
