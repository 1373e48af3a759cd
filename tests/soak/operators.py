"""Operators at random: they scale, pause, reset, redrive and so on, and audit after each step."""

from __future__ import annotations

import collections
import contextlib
import datetime
import random
import threading
import time
import traceback
from collections.abc import Callable

from django.db import DatabaseError, IntegrityError, InterfaceError, connection
from django.utils import timezone

from outbox import groups
from outbox.exceptions import OutboxError
from outbox.models import Cursor, ParkedMessage
from outbox.operations import forgetting, pauses, redrives, replay, scaling
from outbox.operations.audit import audit
from outbox.retention import maintenance
from tests.soak import fleet
from tests.soak.consumers import AT_LEAST_ONCE, EXACTLY_ONCE
from tests.soak.findings import Finding

ALL = [*EXACTLY_ONCE, *AT_LEAST_ONCE, "copy"]


class Operators:
    """Does one thing after the other, by the dice, until it is told to end."""

    def __init__(self, seed: str, environment: dict[str, str], tell: Callable[[str], None]) -> None:
        self.dice = random.Random(seed)
        self.environment, self.tell = environment, tell
        self.counts: collections.Counter[str] = collections.Counter()
        self.findings: list[Finding] = []
        self.audited: list[tuple[str, list[str]]] = []
        """What audits have found, so that each is told once."""
        self.end = threading.Event()
        self.actions: list[tuple[int, Callable[[str], str]]] = [
            (6, self.reset),
            (8, self.scale),
            (3, self.pause),
            (3, self.redrive),
            (2, self.discard),
            (2, self.skip),
            (2, self.maintain),
            (1, self.forget),
            (1, self.command),
        ]

    def run(self) -> None:
        """Do something about every second."""
        weights = [weight for weight, _ in self.actions]
        while not self.end.wait(self.dice.uniform(0.2, 1.5)):
            _, action = self.dice.choices(self.actions, weights)[0]
            self.step(action, self.dice.choice(ALL))
        connection.close()

    def step(self, action: Callable[[str], str], name: str) -> None:
        """Do an action and audit its group."""
        try:
            done = action(name)
            self.counts[action.__name__] += 1
            self.tell(f"{action.__name__} {name}: {done}")
        except OutboxError as refusal:
            self.counts["refused"] += 1
            self.tell(f"{action.__name__} {name} refused: {refusal}")
        except (DatabaseError, InterfaceError) as error:
            if isinstance(error, IntegrityError):  # a check of the log or the cursors said no
                self.findings.append(Finding("operator", f"{action.__name__} {name}: {error}"))
            self.counts["interrupted"] += 1
            self.tell(f"{action.__name__} {name} interrupted: {str(error).strip()[:200]}")
            connection.close()
        except Exception:
            text = f"{action.__name__} {name} raised {traceback.format_exc()}"
            self.findings.append(Finding("operator", text))
            connection.close()
        self.audit(name, action.__name__)

    def audit(self, name: str, after: str = "the end") -> None:
        """Audit a group; an account that is not exact is a finding."""
        try:
            account = audit(name)
        except OutboxError:
            return  # it was forgotten
        except (DatabaseError, InterfaceError):
            connection.close()
            return
        self.counts["audits"] += 1
        for each in account.channels:
            if each.findings and (name, each.findings) not in self.audited:
                self.audited.append((name, each.findings))
                text = f"{name} in {each.channel} after {after}: {', '.join(each.findings)}"
                self.findings.append(Finding("audit", text))
                self.tell(f"AUDIT {name} {each}")

    def reset(self, name: str) -> str:
        """Move a group's cursors; only back where the checker needs each message to be handled.

        A copy of a table is whole then, and what retention removes has been handled by some group.
        """
        back = self.dice.choice([20, 100, 600])
        how = (
            {"shift_by": -back}
            if name == "copy"
            else self.dice.choice(
                [{"shift_by": -back}] * 4
                + [{"by_duration": datetime.timedelta(seconds=self.dice.uniform(0.2, 10))}]
                + [{"to_latest": True}, {"to_group": "single"}]
            )
        )
        keeps_quotes = name in ("single", "stack") and "shift_by" not in how
        channels = ["orders"] if keeps_quotes else None
        moves = replay.reset(name, **how, channels=channels, reason="rack")  # type: ignore[arg-type]
        return f"{how}: {[(m.channel, m.slot_from, m.old, m.new) for m in moves]}"

    def scale(self, name: str) -> str:
        to = self.dice.choice([1, 1, 2, 3, 5, 8])
        ranges = scaling.scale(name, to, timeout=self.dice.choice([0, 1.0, 3.0]))
        return f"to {to}: {len(ranges)} ranges"

    def pause(self, name: str) -> str:
        seconds = self.dice.uniform(0.2, 3)
        pauses.pause(
            name, until=timezone.now() + datetime.timedelta(seconds=seconds), reason="rack"
        )
        if self.dice.random() < 0.5:
            time.sleep(self.dice.uniform(0, seconds))
            pauses.resume(name, reason="rack")
        return f"for {seconds:.1f} s"

    def redrive(self, _: str) -> str:
        name = self.dice.choice(["failing", "failing", *ALL])
        key = ParkedMessage.objects.filter(group=name).values_list("key", flat=True).first()
        group = groups.get(name)
        if key is None or self.dice.random() < 0.3:
            done = redrives.redrive(group, everything=True, limit=self.dice.choice([1, 20]))
        else:
            done = redrives.redrive(group, key=key)
        return f"{name} {key}: {done}"

    def discard(self, _: str) -> str:
        parked = ParkedMessage.objects.filter(group="failing").order_by("?").first()
        if parked is None:
            return "nothing is parked"
        redrives.discard("failing", parked.position, reason="rack")
        return f"failing {parked.position}"

    def skip(self, name: str) -> str:
        """Skip what comes next, with the range paused, so that it stays the next."""
        cursors = Cursor.objects.filter(group=name).exclude(channel__in=["counters", "quotes"])
        cursor = cursors.order_by("?").first()
        if cursor is None:
            return "no cursor"
        pauses.pause(name, until=timezone.now() + datetime.timedelta(seconds=2), reason="rack")
        try:
            cursor.refresh_from_db()
            following = self._following(cursor)
            if following is None:
                return "nothing pending"
            replay.skip(name, following, reason="rack")
        finally:
            with contextlib.suppress(Cursor.DoesNotExist):
                pauses.resume(name, reason="rack")
        return str(following)

    def _following(self, cursor: Cursor) -> int | None:
        with connection.cursor() as session:
            session.execute(
                "SELECT min(position) FROM outbox_message WHERE channel = %s AND position > %s"
                " AND slot BETWEEN %s AND %s",
                [cursor.channel, cursor.position, cursor.slot_from, cursor.slot_to],
            )
            found: int | None = session.fetchone()[0]
        return found

    def maintain(self, _: str) -> str:
        done = maintenance.maintain("default", give_up=3.0)
        return f"{done}"

    def forget(self, _: str) -> str:
        return f"{forgetting.forget('spare', force=True, reason='rack')}"

    def command(self, name: str) -> str:
        """Use the command line."""
        arguments = self.dice.choice(
            [
                ["reset", name, f"--shift-by=-{self.dice.randint(1, 300)}", "--execute"],
                ["scale", name, "--to", str(self.dice.randint(1, 6)), "--timeout", "2"],
                ["describe", name, "--json"],
                ["groups"],
                ["segments", "--maintain"],
                ["doctor"],
            ]
        )
        done = fleet.manage("outbox", *arguments, environment=self.environment)
        if "Traceback" in done.stderr:
            text = f"outbox {arguments}: {done.stderr[-2000:]}"
            self.findings.append(Finding("operator", text))
        return f"{arguments} exit code {done.returncode}"
