"""Transfers: from one account to another, within the limit of a customer over all their accounts."""

from __future__ import annotations

import random
import time
from decimal import Decimal

from django.db import transaction

import outbox

from .events import Deposited, Withdrawn
from .models import Account

RESERVE = Decimal(100)
"""What the accounts of one customer hold together at least."""


class Refused(Exception):
    """The transfer would overdraw the account, or leave the customer with less than the reserve."""


def transfer(name: str, source: str, target: str, amount: Decimal, retries: int = 50) -> int:
    """Move an amount; return how many conflicts there were before. Raises Refused."""
    for attempt in range(retries + 1):
        try:
            _transfer(name, source, target, amount)
            return attempt
        except outbox.StreamConflict:
            if attempt == retries:
                raise
            time.sleep(random.uniform(0, 0.01 * 2 ** min(attempt, 5)))
    raise AssertionError("unreachable")


@transaction.atomic
def _transfer(name: str, source: str, target: str, amount: Decimal) -> None:
    customer = Account.objects.values_list("customer", flat=True).get(pk=source)
    numbers = set(Account.objects.filter(customer=customer).values_list("number", flat=True))
    with outbox.guard(*(("accounts", number) for number in sorted(numbers | {target}))):
        # Read after guard() noted the versions: what changes from here on is a conflict.
        accounts = Account.objects.in_bulk(numbers | {target})
        total = sum(accounts[number].balance for number in numbers)
        if accounts[source].balance < amount or total - amount < RESERVE:
            raise Refused(f"{source} cannot give {amount}")
        events = [
            Withdrawn(account=source, amount=amount, transfer=name),
            Deposited(account=target, amount=amount, transfer=name),
        ]
        # In the order of the accounts, so that two transfers wait for each other in one direction.
        for event in sorted(events, key=lambda each: each.account):
            accounts[event.account].record(event)
