"""What must be true when a run is over, read from the journal, the cursors' changes and the log."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from django.db import connection

from outbox.models import OperatorAction, ParkedMessage
from tests.bank.models import Account
from tests.library.models import Counter, CounterCopy
from tests.soak.consumers import AT_LEAST_ONCE, EXACTLY_ONCE

MOST_SHOWN = 10


class Finding(NamedTuple):
    """Something that must not be; with a place, its history can be told."""

    text: str
    group: str = ""
    channel: str = ""
    slot: int = 0
    position: int = 0
    order: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Reset:
    """A cursor moved by an operator. `order`: its place among the rows of the journal."""

    order: int
    slot_from: int
    slot_to: int
    old: int
    position: int

    def covers(self, slot: int) -> bool:
        return self.slot_from <= slot <= self.slot_to


class Run(NamedTuple):
    """A run of a handler that was kept."""

    order: int
    position: int
    key: str | None
    process: int


def rows(statement: str, *parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall())


class Checker:
    """Reads everything once; `check` yields what is wrong."""

    def __init__(self, acknowledged: set[int]) -> None:
        self.acknowledged = acknowledged
        self.messages = self._messages()
        self.slots = {p: slot for log in self.messages.values() for p, (slot, _) in log.items()}

    def check(self) -> Iterator[Finding]:
        yield from self._facts()
        yield from self._cursors()
        yield from self._projections()
        for group in [*EXACTLY_ONCE, *AT_LEAST_ONCE]:
            for channel in self._channels(group):
                yield from self._group(group, channel)

    def handled(self) -> dict[str, int]:
        """How many runs of handlers were kept, by group."""
        return dict(rows('SELECT "group", count(*) FROM soak_journal GROUP BY 1 ORDER BY 1'))

    def _messages(self) -> dict[str, dict[int, tuple[int, str | None]]]:
        """Channel -> position -> slot and key; with what retention has removed, if it was handled."""
        found: dict[str, dict[int, tuple[int, str | None]]] = collections.defaultdict(dict)
        for channel, position, slot, key in rows(
            "SELECT channel, position, slot, key FROM outbox_message"
            " UNION SELECT channel, position,"
            "     COALESCE(hashtextextended(key, 0) & 32767, 0)::smallint, key"
            " FROM soak_journal WHERE channel = 'quotes'"
        ):
            found[channel][position] = (slot, key)
        return found

    def _facts(self) -> Iterator[Finding]:
        """A message exists if and only if its transaction committed."""
        facts = dict(rows("SELECT n, channel FROM soak_fact"))
        log = dict(
            rows(
                "SELECT (payload ->> 'n')::bigint, position FROM outbox_message"
                " WHERE channel IN ('orders', 'quotes', 'followups')"
            )
        )
        removed = {n for (n,) in rows("SELECT n FROM soak_journal WHERE channel = 'quotes'")}
        for n in sorted(log.keys() - facts.keys()):
            yield Finding(f"message {log[n]} is in the log, and its transaction did not commit")
        for n in sorted(facts.keys() - log.keys() - removed):
            yield Finding(f"number {n} of {facts[n]} was committed, and is not in the log")
        for n in sorted(self.acknowledged - facts.keys()):
            yield Finding(f"the commit of number {n} was confirmed, and it is gone")

    def _cursors(self) -> Iterator[Finding]:
        """Cursors move back by a reset only; leases are renewed by their holder only."""
        for order, group, channel, slot, old, new in rows(
            'SELECT id, "group", channel, slot_from, old_position, position FROM soak_cursor'
            " WHERE op = 'UPDATE' AND position < old_position AND generation = old_generation"
        ):
            yield Finding(
                f"a cursor of {group} moved back from {old} to {new}",
                group,
                channel,
                slot,
                new,
                order,
            )
        renewals = rows(
            'SELECT id, "group", channel, slot_from, position, leased_by, application'
            " FROM soak_cursor WHERE is_renewal"
        )
        holders = {leased_by.rpartition(":")[2] for *_, leased_by, _ in renewals}
        for order, group, channel, slot, position, leased_by, application in renewals:
            found = re.search(r":(\d+)\*?$", application)
            if found and found[1] in holders and found[1] != leased_by.rpartition(":")[2]:
                text = f"{application} renewed or ended the lease of {group} that {leased_by} holds"
                yield Finding(text, group, channel, slot, position, order)

    def _projections(self) -> Iterator[Finding]:
        """What consumers and aggregates made of the log is what the tables hold."""
        wanted = dict(Counter.objects.values_list("pk", "value"))
        copied = dict(CounterCopy.objects.values_list("pk", "value"))
        if wanted != copied:
            different = sorted(wanted.items() ^ copied.items())
            yield Finding(f"the copy of the captured counters differs: {different[:MOST_SHOWN]}")
        for drift in Account.verify():
            yield Finding(f"a row is not the fold of its stream: {drift}")
        for channel, key, text in rows(
            """
            SELECT s.channel, s.key, format('versions %s to %s, %s of them; the stream stands at %s',
                min(m.version), max(m.version), count(m.version), s.version)
            FROM outbox_stream AS s LEFT JOIN outbox_stream_message AS m USING (channel, key)
            GROUP BY s.channel, s.key, s.version
            HAVING count(m.version) <> s.version OR min(m.version) <> 1 OR max(m.version) <> s.version
            """
        ):
            yield Finding(f"stream {key} of {channel} has gaps: {text}")
        for key, version in rows(
            "SELECT key, version FROM (SELECT key, version, position, lag(position) OVER"
            " (PARTITION BY channel, key ORDER BY version) AS before FROM outbox_stream_message) AS m"
            " WHERE before > position"
        ):
            yield Finding(f"version {version} of stream {key} lies before the one before it")

    def _channels(self, group: str) -> list[str]:
        return [
            c for (c,) in rows('SELECT DISTINCT channel FROM soak_cursor WHERE "group" = %s', group)
        ]

    def _group(self, group: str, channel: str) -> Iterator[Finding]:
        runs = [
            Run(*row)
            for row in rows(
                "SELECT id, position, key, process FROM soak_journal"
                ' WHERE "group" = %s AND channel = %s ORDER BY id',
                group,
                channel,
            )
        ]
        resets = [
            Reset(*row)
            for row in rows(
                "SELECT id, slot_from, slot_to, COALESCE(old_position, 9223372036854775807), position"
                ' FROM soak_cursor WHERE "group" = %s AND channel = %s AND ('
                " op = 'UPDATE' AND generation > old_generation AND position <> old_position"
                " OR op = 'INSERT' AND position = 0) ORDER BY id",
                group,
                channel,
            )
        ]
        yield from self._complete(group, channel, runs, resets)
        if group in AT_LEAST_ONCE:
            yield from self._no_overtaking(group, channel, runs, resets)
        else:
            yield from self._once_and_in_order(group, channel, runs, resets)

    def _complete(
        self, group: str, channel: str, runs: list[Run], resets: list[Reset]
    ) -> Iterator[Finding]:
        """Each message was handled since the last reset to before it, or an operator knows why not."""
        last_run = {run.position: run.order for run in runs}
        excused = self._excused(group)
        for position, (slot, key) in sorted(self.messages[channel].items()):
            since = 0
            for reset in reversed(resets):
                if not reset.covers(slot):
                    continue
                if reset.position < position:
                    since = reset.order
                    break
                if reset.old < position:
                    since = -1
                    break
            if since >= 0 and position not in excused and last_run.get(position, -1) < since:
                text = f"{group} never handled {position} (key {key})" + f" since {since}" * (
                    since > 0
                )
                yield Finding(text, group, channel, slot, position, since)

    def _excused(self, group: str) -> set[int]:
        """The positions that are parked, or that an operator skipped or discarded."""
        found = set(ParkedMessage.objects.filter(group=group).values_list("position", flat=True))
        for action in OperatorAction.objects.filter(group=group, action__in=["skip", "discard"]):
            details = action.details
            for part in (details.get("old"), details.get("new")):
                if isinstance(part, dict) and "position" in part:
                    found.add(part["position"])
        return found

    def _once_and_in_order(
        self, group: str, channel: str, runs: list[Run], resets: list[Reset]
    ) -> Iterator[Finding]:
        """Between two resets, the messages of a key come once each, and in order."""
        last: dict[str, int] = {}
        done: dict[int, int] = {}
        slot_of = {key: slot for slot, key in self.messages[channel].values() if key is not None}
        highest = 0
        following = iter([*resets, None])
        reset = next(following)
        for run in runs:
            while reset and reset.order < run.order:
                for key, position in last.items():
                    if position > reset.position and reset.covers(slot_of[key]):
                        last[key] = reset.position
                for position in range(reset.position + 1, highest + 1):
                    if position in done and reset.covers(self.slots[position]):
                        del done[position]
                reset = next(following)
            slot = self.slots.get(run.position, -1)
            place = (group, channel, slot, run.position, run.order)
            if slot < 0:
                yield Finding(f"{group} handled {run.position}, which is not in the log", *place)
                continue
            if run.position in done:
                yield Finding(f"{group} handled {run.position} twice: {done[run.position]}", *place)
            elif run.key is not None and run.position <= last.get(run.key, 0):
                text = f"{group} handled {run.position} after {last[run.key]} of the same key"
                yield Finding(f"{text} {run.key}", *place)
            done[run.position] = run.order
            highest = max(highest, run.position)
            if run.key is not None:
                last[run.key] = max(run.position, last.get(run.key, 0))

    def _no_overtaking(
        self, group: str, channel: str, runs: list[Run], resets: list[Reset]
    ) -> Iterator[Finding]:
        """No message is handled before all earlier ones of its key were.

        A process that was in a handler while a reset came may write that one message after it.
        """
        of_key: dict[str, list[int]] = collections.defaultdict(list)
        for position, (_, key) in sorted(self.messages[channel].items()):
            if key is not None:
                of_key[key].append(position)
        slot_of_key = {key: self.slots[positions[0]] for key, positions in of_key.items()}
        excused = self._excused(group)
        high = dict.fromkeys(of_key, 0)
        late: set[tuple[int, int]] = set()
        generation = 0
        following = iter([*resets, None])
        reset = next(following)
        for run in runs:
            while reset and reset.order < run.order:
                generation = reset.order
                high |= {key: reset.position for key in of_key if reset.covers(slot_of_key[key])}
                reset = next(following)
            is_late = generation > 0 and (generation, run.process) not in late
            late.add((generation, run.process))
            if run.key is None:
                continue
            positions = of_key[run.key]
            first = bisect.bisect_right(positions, high[run.key])
            overtaken = [
                p
                for p in positions[first : bisect.bisect_left(positions, run.position)]
                if p not in excused
            ]
            if overtaken and is_late:
                continue
            if overtaken:
                text = f"{group} handled {run.position} before {overtaken[0]} of the same key {run.key}"
                yield Finding(text, group, channel, slot_of_key[run.key], overtaken[0], run.order)
            high[run.key] = max(high[run.key], run.position)


def history(finding: Finding) -> list[tuple[int, str]]:
    """What happened to the message and to its range around a finding, by order."""
    told = [
        (order, f"process {process} handled {position} (attempt {attempt})")
        for order, position, process, attempt in rows(
            'SELECT id, position, process, attempt FROM soak_journal WHERE "group" = %s'
            " AND channel = %s AND position = %s",
            finding.group,
            finding.channel,
            finding.position,
        )
    ]
    told += [
        (
            order,
            f"{op} of cursor {number} ({first} to {last}): {old} -> {new}, generation {generation},"
            f" by {application}",
        )
        for order, op, number, first, last, old, new, generation, application in rows(
            "SELECT id, op, cursor_id, slot_from, slot_to, old_position, position, generation, application"
            ' FROM soak_cursor WHERE "group" = %s AND channel = %s AND %s BETWEEN slot_from AND slot_to'
            " AND (%s BETWEEN COALESCE(LEAST(old_position, position), 0)"
            "          AND GREATEST(old_position, position)"
            "      OR generation IS DISTINCT FROM old_generation OR op <> 'UPDATE')"
            " ORDER BY id DESC LIMIT 60",
            finding.group,
            finding.channel,
            finding.slot,
            finding.position,
        )
    ]
    return sorted(told)
