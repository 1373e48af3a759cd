"""The pages of the control room over a large log: time and queries of each."""

from __future__ import annotations

import os
import statistics
import time

from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path

import outbox
from benchmarks import harness
from outbox.models import Cursor, ParkedMessage
from outbox.retention import segments
from outbox.testing import isolated_groups

urlpatterns = [path("admin/", admin.site.urls)]

TURNS = 5
GOAL_MS, GOAL_QUERIES = 300, 12
PARKED = 20_000
LOAD = """
    INSERT INTO outbox_message (position, created_at, channel, key, type, payload, headers)
    SELECT n, now() - make_interval(secs => (%s - n) / 100.0),
        CASE n %% 10 WHEN 0 THEN 'payments' ELSE 'orders' END,
        CASE WHEN n %% 1000000 = 1 THEN 'rare' ELSE 'order-' || n %% 500000 END,
        CASE WHEN n %% 1000000 = 1 THEN 'Rare' ELSE 'OrderPlaced' END,
        jsonb_build_object('number', n, 'customer', 'c-' || n %% 1000, 'note', repeat('x', 60)),
        '{"version": 1}'
    FROM generate_series(%s, %s) AS n
"""
PARK = """
    INSERT INTO outbox_parked_message ("group", channel, position, key, slot, type, payload, headers, created_at,
        replayed, reason, attempts, error_class, error, traceback)
    SELECT 'failing', channel, position, key, slot, type, payload, headers, created_at,
        false, 'failed', 3, 'builtins.Error' || position %% 5, 'no such order', repeat('line of a traceback ', 50)
    FROM outbox_message WHERE channel = 'orders' ORDER BY position LIMIT %s
"""


def run(*, quick: bool) -> None:
    """Print what each page takes with 10,000,000 messages (OUTBOX_CONTROL_MESSAGES)."""
    count = int(os.environ.get("OUTBOX_CONTROL_MESSAGES", "200000" if quick else "10000000"))
    _load(count)
    client = Client()
    client.force_login(User.objects.create_superuser("ann"))
    with isolated_groups():
        outbox.ConsumerGroup("failing", channels=["orders", "payments"]).handler("Rare")(print)
        rows = [_row(client, page) for page in _pages(count)]
    harness.show(
        f"The control room over {count:,} messages",
        ["page", "ms", "goal", "queries", "goal"],
        rows,
        f" Median of {TURNS} requests, the client in the process of the server.",
    )


def _load(count: int) -> None:
    """Fill the log in segments, and give it groups that are at its end, behind, and failing."""
    for each in segments.list_segments():
        if each.lower is not None:
            harness.execute(f"DROP TABLE {each.name}")
    harness.empty_log()
    harness.execute("SELECT setval('outbox_message_position_seq', 1, false)")
    segments.create_ahead(9, size=max(20_000, count // 8))
    harness.execute("SET session_replication_role = replica")
    step = max(20_000, count // 20)
    for first in range(1, count + 1, step):
        harness.execute(LOAD, [count, first, min(first + step - 1, count)])
    harness.execute("SET session_replication_role = origin")
    harness.execute("SELECT setval('outbox_message_position_seq', %s)", [count])
    harness.execute(PARK, [PARKED])
    places = {"at-the-end": count, "behind": 0, "failing": count // 2, "wide": count // 3}
    for group, position in places.items():
        ranges = 4 if group == "wide" else 1
        for number in range(ranges):
            for channel in ("orders", "payments"):
                Cursor.objects.create(
                    group=group,
                    channel=channel,
                    slot_from=number * 32768 // ranges,
                    slot_to=(number + 1) * 32768 // ranges - 1,
                    position=position,
                    counted_from=0,
                    max_position=position,
                    parked=PARKED if (group, channel) == ("failing", "orders") else 0,
                )
    harness.execute("VACUUM ANALYZE outbox_message")
    harness.execute("ANALYZE")


def _pages(count: int) -> list[str]:
    rare = (count - 1) // 1_000_000 * 1_000_000 + 1
    parked = ParkedMessage.objects.earliest("position").pk
    do = "group/{}/do/{}/{}".format
    return [
        "group/",
        *[f"group/{name}/change/" for name in ("at-the-end", "behind", "failing", "wide")],
        "message/",
        f"message/?channel=orders&before={count // 2}",
        "message/?channel=orders&time=2020-01-01T00:00",
        "message/?key=rare",
        f"message/?channel=orders&key=order-7&before={count // 2}",
        "message/?type=Rare",
        f"message/{count // 2}/change/",
        f"message/{rare}/change/",
        "message/segments/",
        "parkedmessage/",
        "parkedmessage/?group=failing",
        "parkedmessage/?group=failing&key=order-7",
        "parkedmessage/?group=failing&error=no+such",
        f"parkedmessage/{parked}/change/",
        "operatoraction/",
        do("behind", "pause", ""),
        do("wide", "scale", "?to=8"),
        do("wide", "reset", "?way=to_earliest"),
        do("wide", "reset", "?way=to_latest"),
        do("failing", "redrive", "?all=on"),
        do("failing", "discard", "?all=on"),
        do("failing", "forget", ""),
    ]


def _row(client: Client, page: str) -> list[str]:
    taken, queries = [], 0
    for _ in range(TURNS):
        with CaptureQueriesContext(connection) as captured:
            began = time.perf_counter()
            answer = client.get(f"/admin/outbox/{page}")
            taken.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, (page, answer.status_code)
        queries = len([each for each in captured if each["sql"].split()[0] in ("SELECT", "WITH")])
    found = statistics.median(taken)
    return [
        page,
        f"{found:.0f}",
        f"<= {GOAL_MS}, {'met' if found <= GOAL_MS else 'MISSED'}",
        str(queries),
        f"<= {GOAL_QUERIES}, {'met' if queries <= GOAL_QUERIES else 'MISSED'}",
    ]
