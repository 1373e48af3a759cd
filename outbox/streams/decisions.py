"""Decisions: load an aggregate, decide which events follow, record them; again on a conflict."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django.db import connections, router, transaction

from ..events import Event
from ..exceptions import InvalidStream, StreamConflict
from ..publisher import Headers
from .aggregate import Aggregate

A = TypeVar("A", bound=Aggregate)


def decide(
    model: type[A],
    key: Any,
    decision: Callable[[A], Iterable[Event]],
    *,
    retries: int = 3,
    headers: Headers = None,
    using: str | None = None,
) -> A:
    """Load the aggregate of a key, call `decision` with it, and record the events it returns.

    All in a transaction of its own. A key without a row gives a new instance, whose version is 0.
    On a StreamConflict it begins again, at most `retries` times; so `decision` must not do anything
    that cannot be repeated. Returns the aggregate as it then stands. Raises the last conflict,
    and InvalidStream inside `atomic()`, where a retry would read what it read before.
    """
    alias = using or router.db_for_write(model)
    blocks = getattr(connections[alias], "atomic_blocks", [])
    if any(not getattr(block, "_from_testcase", False) for block in blocks):
        raise InvalidStream(
            "decide() needs a transaction of its own, to begin again after a conflict: call it "
            "outside atomic(), or record() in your own transaction."
        )
    for attempt in range(retries + 1):
        try:
            with transaction.atomic(using=alias):
                instance = model._default_manager.using(alias).filter(pk=key).first()
                if instance is None:
                    instance = model(pk=model._meta.pk.to_python(key))
                for event in decision(instance):
                    instance.record(event, headers=headers, using=alias)
            return instance
        except StreamConflict:
            if attempt == retries:
                raise
            time.sleep(random.uniform(0, 0.01 * 2**attempt))
    raise AssertionError("unreachable")
