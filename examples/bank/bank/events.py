"""What happens to an account. Each account is a stream; its key is the account's number."""

from decimal import Decimal

import outbox


class Opened(outbox.Event, channel="accounts", key="account", stream=True):
    account: str
    customer: str
    amount: Decimal


class Withdrawn(outbox.Event, channel="accounts", key="account", stream=True):
    account: str
    amount: Decimal
    transfer: str


class Deposited(outbox.Event, channel="accounts", key="account", stream=True):
    account: str
    amount: Decimal
    transfer: str
