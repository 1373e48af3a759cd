"""The gate for event classes: a change is refused if and only if stored payloads may not decode."""

from __future__ import annotations

import datetime
from decimal import Decimal

import msgspec
import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import outbox
from outbox import events
from outbox.messages import Message, decode
from outbox.streams import event_lock


@pytest.fixture
def registry(monkeypatch):
    """An empty registry of event classes."""
    monkeypatch.setattr(events, "_registry", {})
    return events._registry


def declare(fields, **options):
    """Declare the class `Made` of channel `goods` anew."""
    events._registry.clear()
    annotations = {name: kind for name, (kind, *_) in fields.items()}
    namespace = {"__annotations__": annotations, "__module__": __name__}
    namespace |= {name: rest[0] for name, (_, *rest) in fields.items() if rest}
    options = {"channel": "goods", "key": "id", "type": "Made", "kw_only": True, **options}
    return type(outbox.Event)("Made", (outbox.Event,), namespace, **options)


BASE = {"id": (int,), "note": (str, ""), "price": (Decimal,)}


def problems_after(fields, **options):
    """Lock the base class, declare another one, and return what the gate says."""
    declare(BASE)
    lock = event_lock.current()
    declare(fields, **options)
    return event_lock.check(lock)


ALLOWED = {
    "nothing": {},
    "a new field with a default": {"added": (int, 0)},
    "a wider type": {"id": (float,)},
    "an optional type": {"price": (Decimal | None,)},
    "a default for a field": {"price": (Decimal, Decimal(0))},
}
REFUSED = {
    "a field that is gone": ({"note": None}, "note is gone"),
    "a narrower type": ({"price": (int,)}, "price was decimal"),
    "a new field without a default": ({"added": (int,)}, "added has no default"),
    "a union that lost a member": ({"note": (int, 0)}, "note was string"),
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED.keys())
def test_a_change_that_reads_what_is_stored_passes(registry, change):
    """The gate has nothing to say."""
    assert problems_after({**BASE, **change}) == []


@pytest.mark.parametrize(("change", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_a_change_that_may_not_read_what_is_stored_is_refused(registry, change, text):
    """It names the field, and a raised version is a way out."""
    fields = {name: kind for name, kind in {**BASE, **change}.items() if kind is not None}

    (problem,) = problems_after(fields)

    assert text in problem
    assert "upgrade()" in problem
    assert problems_after(fields, version=2) == []


class Part(msgspec.Struct):
    """A type that contains itself."""

    name: str
    parts: list[Part] = []


class SparePart(msgspec.Struct, rename={"spares": "parts"}):
    """The same, with a part that has a name of another type."""

    name: int
    spares: list[SparePart] = []


def test_a_type_that_contains_itself_is_compared_once(registry):
    """The gate comes to an end, and still sees a change inside it."""
    declare({"id": (int,), "part": (Part,)})
    lock = event_lock.current()

    assert event_lock.check(lock) == []
    declare({"id": (int,), "part": (SparePart,)})
    (problem,) = event_lock.check(lock)
    assert "part.name was string and is integer" in problem


def test_a_type_that_is_gone_or_renamed_is_refused_without_its_old_name(registry):
    """`was=` names it."""
    (problem,) = problems_after(BASE, type="Built")

    assert 'was=["Made"]' in problem
    assert problems_after(BASE, type="Built", was=["Made"]) == []


def test_a_changed_key_is_refused(registry):
    """Messages of one thing would lose their order; a version does not help."""
    (problem,) = problems_after(BASE, key="note", version=2)

    assert "its key was 'id'" in problem


def test_a_version_that_goes_back_is_refused(registry):
    """Stored messages have the newer one."""
    declare(BASE, version=2)
    lock = event_lock.current()
    declare(BASE)

    (problem,) = event_lock.check(lock)

    assert "went back" in problem


KINDS = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=3),
    bool: st.booleans(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False, places=2),
    datetime.date: st.dates(),
    int | None: st.none() | st.integers(0, 9),
    list[int]: st.lists(st.integers(0, 9), max_size=2),
    list[str]: st.lists(st.text(max_size=2), max_size=2),
    dict[str, int]: st.dictionaries(st.text(max_size=2), st.integers(0, 9), max_size=2),
}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(old=st.sampled_from(list(KINDS)), new=st.sampled_from(list(KINDS)), data=st.data())
def test_what_passes_decodes(old, new, data):
    """When the gate passes a change of a field's type, every payload of the old class decodes."""
    known = dict(events._registry)
    try:
        first = declare({"id": (int,), "field": (old,)})
        lock = event_lock.current()
        value = data.draw(KINDS[old])
        stored = msgspec.json.encode(first(id=1, field=value))
        second = declare({"id": (int,), "field": (new,)})

        if not event_lock.check(lock):
            msgspec.json.decode(stored, type=second)
    finally:
        events._registry.clear()
        events._registry.update(known)


def test_the_commands(tmp_path, capsys):
    """`lock` writes the file, `check` passes on it, `catalogue` lists, and a broken file is named."""
    file = tmp_path / "events.lock.json"

    call_command("outbox", "events", "lock", "--file", str(file))
    call_command("outbox", "events", "check", "--file", str(file))
    call_command("outbox", "events", "catalogue")

    assert "OrderPlaced" in capsys.readouterr().out
    file.write_text("{}")
    with pytest.raises(CommandError, match="no lock file"):
        call_command("outbox", "events", "check", "--file", str(file))


@pytest.mark.django_db
def test_an_event_of_version_four_reads_what_versions_one_to_three_stored(registry):
    """Each upgrade is a step of the chain; messages of all versions are read as the newest class."""
    from django.db import transaction

    declare({"id": (int,), "name": (str,)})
    versions = [
        ({"id": (int,), "name": (str,)}, {"id": 1, "name": "Ann Lee"}),
        ({"id": (int,), "first": (str,), "last": (str,)}, {"id": 1, "first": "Bo", "last": "Ek"}),
        ({"id": (int,), "full": (str,)}, {"id": 1, "full": "Cy Fox"}),
    ]

    def upgrade(cls, payload, version):
        if version < 2:
            first, _, last = payload.pop("name").partition(" ")
            payload |= {"first": first, "last": last}
        if version < 3:
            payload["full"] = f"{payload.pop('first')} {payload.pop('last')}"
        if version < 4:
            payload["initials"] = "".join(word[0] for word in payload.pop("full").split())
        return payload

    with transaction.atomic():
        for number, (fields, values) in enumerate(versions, 1):
            outbox.publish(declare(fields, version=number)(**values))
    newest = declare({"id": (int,), "initials": (str,)}, version=4)
    newest.upgrade = classmethod(upgrade)
    stored = outbox.models.Message.objects.order_by("position")

    assert [
        decode(
            Message(
                each.position,
                each.channel,
                each.key,
                each.type,
                1,
                False,
                "",
                msgspec.json.encode(each.payload).decode(),
                msgspec.json.encode(each.headers).decode(),
                "",
            ),
            newest,
        ).initials
        for each in stored
    ] == ["AL", "BE", "CF"]
