"""What must hold at the end: each check gives how often it is violated."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal

from django.db.models import Sum

import outbox
from outbox.models import Message, Stream
from outbox.operations.audit import audit

from .consumers import statements
from .events import Deposited, Opened, Withdrawn
from .models import Account, Line
from .transfers import RESERVE


def checks(expected_total: Decimal) -> Iterator[tuple[str, int]]:
    """Give what is checked and the number of violations."""
    total = Account.objects.aggregate(total=Sum("balance"))["total"]
    yield "the sum of all balances is what it was", int(total != expected_total)
    yield "each row is the fold of its stream", len(list(Account.verify()))
    yield from _from_the_log()
    yield "versions have no gap", sum(_gaps(each) for each in Stream.objects.all())
    yield "statements follow the streams, line by line", _wrong_lines()
    report = audit(statements)
    yield "the audit of the group adds up", int(not report.passed)


def _from_the_log() -> Iterator[tuple[str, int]]:
    """Read the log once in its order: overdrafts, reserves, halves of transfers."""
    balances: dict[str, Decimal] = defaultdict(Decimal)
    owners: dict[str, str] = {}
    totals: dict[str, Decimal] = defaultdict(Decimal)
    overdrafts = below = 0
    halves: Counter[tuple[str, Decimal]] = Counter()
    sides: Counter[str] = Counter()
    for event in _events():
        sign = -1 if isinstance(event, Withdrawn) else 1
        if isinstance(event, Opened):
            owners[event.account] = event.customer
        else:
            halves[event.transfer, event.amount] += sign
            sides[event.transfer] += 1
        balances[event.account] += sign * event.amount
        totals[owners[event.account]] += sign * event.amount
        if sign < 0:
            overdrafts += balances[event.account] < 0
            below += totals[owners[event.account]] < RESERVE
    yield "no account was ever overdrawn", overdrafts
    yield "no customer ever had less than the reserve", below
    broken = sum(count != 0 for count in halves.values()) + sum(n != 2 for n in sides.values())
    yield "each transfer has both its sides, once", broken


def _events() -> Iterator[Opened | Withdrawn | Deposited]:
    kinds = {kind.__name__: kind for kind in (Opened, Withdrawn, Deposited)}
    for message in Message.objects.filter(channel="accounts").order_by("position").iterator():
        payload = message.payload
        yield kinds[message.type](**{**payload, "amount": Decimal(payload["amount"])})


def _gaps(row: Stream) -> int:
    history = outbox.stream("accounts", row.key)
    versions = [message.stream_version for _, message in history.read()]
    return int(versions != list(range(1, row.version + 1)))


def _wrong_lines() -> int:
    wrong = abs(Line.objects.count() - Message.objects.filter(channel="accounts").count())
    for account in Account.objects.all():
        last = Line.objects.filter(account=account.number).order_by("number").last()
        wrong += last is None or (last.number, last.balance) != (account.version, account.balance)
    return wrong
