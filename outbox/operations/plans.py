"""Plans: what an operator was shown before a change, compared with what holds when it is made.

    shown -> confirmed -> locked -> compared -> changed | refused

A plan is a set of facts, each a name and a text. It is compared under the locks of the change, so
that nothing can move in between.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..exceptions import PlanChanged

Facts = dict[str, str]


def check(shown: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise PlanChanged, which says what changed, unless the facts are those that were shown."""
    changes = [
        f"{name}: was {shown.get(name, 'not there')}, is now {now.get(name, 'not there')}."
        for name in {**shown, **now}
        if shown.get(name) != now.get(name)
    ]
    if changes:
        raise PlanChanged(changes)
