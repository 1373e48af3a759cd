"""Promises 7 and 10 by a model: the steps of `p10_by_model`, and operators that move groups meanwhile.

Resets to any position, pauses, skips, splits, roll-backs to savepoints. After every step cursors,
effects, parked messages and `outbox audit` must say what the model says.
"""

from __future__ import annotations

import pytest
from django.db import transaction
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

import outbox
from outbox.models import Cursor
from outbox.operations import audit, pauses, replay, scaling
from tests.contracts.p10_by_model import GROUPS, KEYS, Machine, Model, check
from tests.shop.models import Effect

NAMES = st.sampled_from(list(GROUPS))
SINGLE = st.sampled_from([name for name in GROUPS if name != "ranges"])
MOST_RANGES = 9


class MovedModel(Model):
    """What one group should have done since its last reset."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.is_paused = False
        self.below: set[int] = set()
        """Messages at or below the last reset that are not parked: the group is past them."""

    def places(self) -> list[int]:
        return [*super().places(), *self.below]

    def work(self) -> None:
        if not self.is_paused:
            super().work()

    def reset(self, position: int, published: dict[int, str | None]) -> None:
        self.parked = {at: key for at, key in self.parked.items() if at <= position}
        self.waiting = [(at, key) for at, key in sorted(published.items()) if at > position]
        self.below = {at for at in published if at <= position and at not in self.parked}
        self.handled, self.skipped, self.crashes = [], set(), {}


class OperatedMachine(Machine):
    def __init__(self) -> None:
        super().__init__()
        self.models = {name: MovedModel(name) for name in GROUPS}

    @rule(key=st.sampled_from(KEYS), outer=st.booleans())
    def publish_and_roll_back(self, key, outer):
        """A message of a savepoint, or of a transaction, that is rolled back leaves a gap."""
        with transaction.atomic():
            with transaction.atomic():
                outbox.publish_raw("trouble", "Order", {}, key=key)
                transaction.set_rollback(True)
            if outer:
                outbox.publish_raw("trouble", "Order", {}, key=key)
                transaction.set_rollback(True)

    @rule(name=NAMES)
    def pause(self, name):
        pauses.pause(name)
        self.models[name].is_paused = True

    @rule(name=NAMES)
    def resume(self, name):
        pauses.resume(name)
        self.models[name].is_paused = False

    @rule(name=NAMES, way=st.sampled_from(["earliest", "latest", "position"]), data=st.data())
    def reset(self, name, way, data):
        """The group handles again what lies above; what it did since the last reset is forgotten."""
        last = max(self.published, default=0)
        if way == "position":
            target = data.draw(st.sampled_from([0, *sorted(self.published)]))
            replay.reset(name, position=target)
        else:
            target = last if way == "latest" else 0
            replay.reset(name, to_latest=way == "latest", to_earliest=way == "earliest")
        self.models[name].reset(target, self.published)
        Effect.objects.filter(group=name).delete()

    @rule(to=st.integers(2, MOST_RANGES))
    def split(self, to):
        """More ranges than before; each goes on where the one that it came from stood."""
        if to > Cursor.objects.filter(group="ranges").count():
            scaling.scale("ranges", to, timeout=0)

    @precondition(lambda self: any(model.waiting for model in self.models.values()))
    @rule(name=SINGLE)
    def skip(self, name):
        model = self.models[name]
        if model.waiting:
            position, _ = model.waiting.pop(0)
            replay.skip(name, position, reason="a test")
            model.skipped.add(position)

    @invariant()
    def each_cursor_is_between_what_is_done_and_what_waits(self):
        for name, model in self.models.items():
            if name != "ranges" and model.waiting:
                assert Cursor.objects.get(group=name).position < model.waiting[0][0], name

    @invariant()
    def the_audit_agrees(self):
        for name in GROUPS:
            assert audit.audit(name).passed, name


@pytest.mark.django_db(transaction=True)
def test_wherever_operators_move_groups_each_message_is_handled_parked_or_skipped():
    """In every sequence of events and operators' steps the database agrees with the model."""
    check(OperatedMachine, steps=40)
