"""Promise 10 by a model: publish, fail, recover, park, redrive, discard and die in any order.

The model knows, for each group, which messages wait, which are parked and which are done. After
every step the database must say the same, and what the handlers did must be in order per key, once
each, and complete: handled + parked + skipped = published.
"""

from __future__ import annotations

import itertools

import pytest
from django.db import connection
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import outbox
from outbox.consuming import crashes
from outbox.models import Cursor, ParkedMessage
from outbox.operations import redrives
from outbox.testing import isolated_groups
from outbox.worker import Worker
from tests.shop.models import Effect, OrderLine
from tests.support.amounts import IS_LONG, amount
from tests.support.failing import account
from tests.support.publishing import publish

EXAMPLES = amount(10, 500)
PHASES = [Phase.generate] if not IS_LONG else [Phase.generate, Phase.shrink]
"""Shrinking takes minutes: only when more examples than usual are asked for."""
KEYS = ["a", "b", "c", None]
GROUPS = {
    "parks": {"on_failure": "park"},
    "ranges": {"on_failure": "park", "parallelism": 3},
    "skips": {"on_failure": "skip"},
    "leases": {"on_failure": "park", "delivery": "at_least_once"},
    "stacks": {"on_failure": "park"},
}
RETRY = outbox.Retry(max_attempts=2, base=0)


def raise_an_error():
    raise ValueError("a bad message")


def break_the_commit():
    OrderLine.objects.create(order_id=404)


def end_the_transaction():
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK")
    raise ValueError("a bad message")


def end_the_session():
    connection.connection.close()


WAYS_TO_FAIL = {
    each.__name__: each
    for each in (raise_an_error, break_the_commit, end_the_transaction, end_the_session)
}


class Killed(KeyboardInterrupt):
    """Ends a worker in the middle of a batch, as a signal would."""


class Model:
    """What one group should have done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: list[tuple[int, str | None]] = []
        self.parked: dict[int, str | None] = {}
        self.handled: list[int] = []
        self.skipped: set[int] = set()
        self.crashes: dict[int, int] = {}
        self.broken: dict[int, str] = {}
        """How each message fails that does: a name of `WAYS_TO_FAIL`."""

    def places(self) -> list[int]:
        """Return the position of each message, once."""
        waiting = [position for position, _ in self.waiting]
        return [*self.handled, *self.parked, *self.skipped, *waiting]

    def is_blocked(self, key: str | None) -> bool:
        return key is not None and key in self.parked.values()

    def work(self) -> None:
        for position, key in self.waiting:
            if self.is_blocked(key):
                self.parked[position] = key
            elif position not in self.broken:
                self.handled.append(position)
            else:
                self.give_up(position, key)
        self.waiting = []

    def give_up(self, position: int, key: str | None) -> None:
        if self.name == "skips":
            self.skipped.add(position)
        else:
            self.parked[position] = key

    def redrive(self, key: str | None, everything: bool) -> None:
        stopped = set()
        for position, of_key in sorted(self.parked.items()):
            if of_key in stopped or not (everything or of_key == key):
                continue
            if position not in self.broken:
                del self.parked[position]
                self.handled.append(position)
            elif of_key is not None:
                stopped.add(of_key)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        with connection.cursor() as cursor:
            cursor.execute(
                "TRUNCATE outbox_message, outbox_cursor, outbox_parked_message, shop_effect"
            )
        self.isolation = isolated_groups()
        self.isolation.__enter__()
        self.published: dict[int, str | None] = {}
        self.models = {name: Model(name) for name in GROUPS}
        self.groups = {name: self.declare(name, options) for name, options in GROUPS.items()}
        self.dies_at: int | None = None
        Worker(list(self.groups.values())).register()

    def declare(self, name, options):
        group = outbox.ConsumerGroup(name, channels=["trouble"], retry=RETRY, **options)

        def handle(payload, message):
            if self.dies_at == message.position:
                raise Killed
            if way := self.models[name].broken.get(message.position):
                # The end of a session in a leased group is no failure of its message at first.
                WAYS_TO_FAIL[way if name != "leases" else "raise_an_error"]()
            Effect.objects.create(
                group=name,
                channel=message.channel,
                position=message.position,
                key=message.key,
                type=message.type,
                attempt=message.attempt,
                backend=0,
            )

        def handle_all(payloads, messages):
            for payload, message in zip(payloads, messages, strict=True):
                handle(payload, message)

        if name == "stacks":
            group.batch_handler("Order")(handle_all)
        else:
            group.handler("Order")(handle)
        return group

    @rule(
        messages=st.lists(
            st.tuples(st.sampled_from(KEYS), st.sampled_from([*[None] * 4, *WAYS_TO_FAIL])),
            min_size=1,
            max_size=6,
        )
    )
    def publish(self, messages):
        """Some messages fail until they are repaired."""
        keys = [key for key, _ in messages]
        for position, (key, way) in zip(publish(*keys), messages, strict=True):
            self.published[position] = key
            for model in self.models.values():
                model.waiting.append((position, key))
                if way:
                    model.broken[position] = way

    @rule(name=st.sampled_from(list(GROUPS)), data=st.data())
    def repair(self, name, data):
        broken = self.models[name].broken
        if broken:
            del broken[data.draw(st.sampled_from(sorted(broken)))]

    @rule(name=st.sampled_from(list(GROUPS)), size=st.sampled_from([1, 2, 500]))
    def work(self, name, size):
        Worker([self.groups[name]], batch_size=size).drain()
        self.models[name].work()

    @precondition(lambda self: any(model.waiting for model in self.models.values()))
    @rule(data=st.data())
    def die(self, data):
        """A worker of a transactional group ends in a handler: nothing of its batch happened."""
        names = [name for name, model in self.models.items() if model.waiting and name != "leases"]
        if not names:
            return
        name = data.draw(st.sampled_from(names))
        self.dies_at = data.draw(st.sampled_from(self.models[name].waiting))[0]
        try:
            Worker([self.groups[name]]).run_once()
        except Killed:
            pass
        else:
            self.follow(name)
        self.dies_at = None

    def follow(self, name):
        """After a batch that did not reach the place of death: let the others be handled, too."""
        self.dies_at = None
        Worker([self.groups[name]]).drain()
        self.models[name].work()

    @rule(name=st.sampled_from([name for name in GROUPS if name != "ranges"]))
    def crash(self, name):
        """A worker process dies in the next message, and its supervisor records that."""
        model = self.models[name]
        if not model.waiting or model.is_blocked(model.waiting[0][1]):
            return
        position = model.waiting[0][0]
        cursor = Cursor.objects.get(group=name)
        assert crashes.record_dead_process(cursor.id, position, "killed by SIGKILL")
        model.crashes[position] = model.crashes.get(position, 0) + 1
        if model.crashes[position] == RETRY.max_attempts:
            model.give_up(*model.waiting.pop(0))

    @rule(name=st.sampled_from(list(GROUPS)), key=st.sampled_from(["a", "b", "c"]))
    def redrive_key(self, name, key):
        if self.models[name].is_blocked(key):
            redrives.redrive(name, key=key)
            self.models[name].redrive(key, everything=False)

    @rule(name=st.sampled_from(list(GROUPS)))
    def redrive_everything(self, name):
        redrives.redrive(name, everything=True)
        self.models[name].redrive(None, everything=True)

    @precondition(lambda self: any(model.parked for model in self.models.values()))
    @rule(data=st.data())
    def discard(self, data):
        name = data.draw(
            st.sampled_from([name for name, model in self.models.items() if model.parked])
        )
        position = data.draw(st.sampled_from(sorted(self.models[name].parked)))
        redrives.discard(name, position, reason="a test")
        del self.models[name].parked[position]
        self.models[name].skipped.add(position)

    @invariant()
    def the_database_says_what_the_model_says(self):
        for name, model in self.models.items():
            effects = list(Effect.objects.filter(group=name).order_by("id").values_list("position"))
            parked = ParkedMessage.objects.filter(group=name).values_list("position", "key")
            assert sorted(position for (position,) in effects) == sorted(model.handled), name
            assert dict(parked) == model.parked, name

    @invariant()
    def each_key_is_handled_in_order_and_once(self):
        for name in GROUPS:
            effects = Effect.objects.filter(group=name, key__isnull=False).order_by("key", "id")
            pairs = effects.values_list("key", "position")
            for key, of_key in itertools.groupby(pairs, key=lambda pair: pair[0]):
                positions = [position for _, position in of_key]
                assert positions == sorted(set(positions)), f"{name} {key}"

    @invariant()
    def nothing_overtakes_a_parked_message(self):
        for name, model in self.models.items():
            first = {}
            for position, key in sorted(model.parked.items(), reverse=True):
                first[key] = position
            first.pop(None, None)
            for key, position in first.items():
                overtakers = Effect.objects.filter(group=name, key=key, position__gt=position)
                assert not overtakers.exists(), f"{name} {key}"

    @invariant()
    def every_message_is_accounted_for(self):
        for name, model in self.models.items():
            counted, stored = account(name)
            assert counted == stored, name
            assert sorted(model.places()) == sorted(self.published), name

    def teardown(self):
        self.isolation.__exit__(None, None, None)


def check(machine, steps):
    """Run random sequences of a machine's steps; an invariant that does not hold fails the test."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.django_db(transaction=True)
def test_whatever_happens_each_message_is_handled_parked_or_skipped():
    """In every sequence of events the database agrees with the model after each step."""
    check(Machine, steps=30)
