"""What must be true when a run is over, read from the journal, the cursors' changes and the log."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

from outbox.models import Cursor, OperatorAction, ParkedMessage
from tests.bank.models import Account
from tests.library.models import Counter, CounterCopy
from tests.soak.consumers import AT_LEAST_ONCE, EXACTLY_ONCE
from tests.soak.findings import Finding, rows


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
            text = f"message {log[n]} is in the log, and its transaction did not commit"
            yield Finding("not committed", text)
        for n in sorted(facts.keys() - log.keys() - removed):
            text = f"number {n} of {facts[n]} was committed, and is not in the log"
            yield Finding("not published", text)
        for n in sorted(self.acknowledged - facts.keys()):
            yield Finding("commit lost", f"the commit of number {n} was confirmed, and it is gone")

    def _cursors(self) -> Iterator[Finding]:
        """Cursors move back by a reset only; leases are renewed by their holder only."""
        for order, group, channel, slot, old, new in rows(
            'SELECT id, "group", channel, slot_from, old_position, position FROM soak_cursor'
            " WHERE op = 'UPDATE' AND position < old_position AND generation = old_generation"
        ):
            text = f"a cursor of {group} moved back from {old} to {new}"
            yield Finding("cursor moved back", text, group, channel, slot, new, order)
        renewals = rows(
            'SELECT id, "group", channel, slot_from, position, leased_by, application'
            " FROM soak_cursor WHERE is_renewal"
        )
        holders = {leased_by.rpartition(":")[2] for *_, leased_by, _ in renewals}
        for order, group, channel, slot, position, leased_by, application in renewals:
            # A worker's session: a supervisor, whose pid a worker may have had, ends those of the dead.
            found = re.search(r"^outbox:.*:(\d+)\*?$", application)
            if found and found[1] in holders and found[1] != leased_by.rpartition(":")[2]:
                text = f"{application} renewed or ended the lease of {group} that {leased_by} holds"
                yield Finding("lease of another", text, group, channel, slot, position, order)

    def _projections(self) -> Iterator[Finding]:
        """What consumers and aggregates made of the log is what the tables hold."""
        wanted = dict(Counter.objects.values_list("pk", "value"))
        copied = dict(CounterCopy.objects.values_list("pk", "value"))
        if wanted != copied:
            different = sorted(wanted.items() ^ copied.items())
            text = f"the copy of the captured counters differs: {different[:10]}"
            yield Finding("projection", text)
        for drift in Account.verify():
            yield Finding("projection", f"a row is not the fold of its stream: {drift}")
        for channel, key, text in rows(
            """
            SELECT s.channel, s.key, format('versions %s to %s, %s of them; the stream stands at %s',
                min(m.version), max(m.version), count(m.version), s.version)
            FROM outbox_stream AS s LEFT JOIN outbox_stream_message AS m USING (channel, key)
            GROUP BY s.channel, s.key, s.version
            HAVING count(m.version) <> s.version OR min(m.version) <> 1 OR max(m.version) <> s.version
            """
        ):
            yield Finding("stream", f"stream {key} of {channel} has gaps: {text}")
        for key, version in rows(
            "SELECT key, version FROM (SELECT key, version, position, lag(position) OVER"
            " (PARTITION BY channel, key ORDER BY version) AS before FROM outbox_stream_message) AS m"
            " WHERE before > position"
        ):
            text = f"version {version} of stream {key} lies before the one before it"
            yield Finding("stream", text)

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
        """Each message was handled since the last reset to before it, or an operator knows why not.

        What lies above the cursor of its range is pending, and no loss.
        """
        last_run = {run.position: run.order for run in runs}
        excused = self._excused(group)
        ends = self._ends(group, channel)
        for position, (slot, key) in sorted(self.messages[channel].items()):
            since = _wanted_since(position, slot, resets)
            is_pending = not any(
                first <= slot <= last and position <= end for first, last, end in ends
            )
            if since is None or is_pending or position in excused:
                continue
            if last_run.get(position, -1) < since:
                text = f"{group} never handled {position} (key {key})"
                if since > 0:
                    text += f" after the reset at {since}"
                yield Finding("lost", text, group, channel, slot, position, since)

    def _ends(self, group: str, channel: str) -> list[tuple[int, int, int]]:
        """Of each range its first and last slot, and where its cursor stands now."""
        places = Cursor.objects.filter(group=group, channel=channel)
        return list(places.values_list("slot_from", "slot_to", "position"))

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
                text = f"{group} handled {run.position}, which is not in the log"
                yield Finding("not in the log", text, *place)
                continue
            if run.position in done:
                text = f"{group} handled {run.position} twice: {done[run.position]} and {run.order}"
                yield Finding("doubled", text, *place)
            elif run.key is not None and run.position <= last.get(run.key, 0):
                text = f"{group} handled {run.position} after {last[run.key]} of key {run.key}"
                yield Finding("out of order", text, *place)
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
                text = f"{group} handled {run.position} before {overtaken[0]} of key {run.key}"
                place = (group, channel, slot_of_key[run.key], overtaken[0], run.order)
                yield Finding("out of order", text, *place)
            high[run.key] = max(high[run.key], run.position)


def _wanted_since(position: int, slot: int, resets: list[Reset]) -> int | None:
    """The order of the last reset to before a message; 0: none. None: a reset passed it over."""
    for reset in reversed(resets):
        if not reset.covers(slot):
            continue
        if reset.position < position:
            return reset.order
        if reset.old < position:
            return None
    return 0
