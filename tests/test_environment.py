"""The run tests what it says it tests: its driver and its server."""

from __future__ import annotations

import importlib.util
import os

import pytest
from django.db import connection

from tests.support.processes import driver


def test_driver_is_the_expected_one() -> None:
    """Django uses the driver that the run is for, and the other one is not there to be used instead."""
    expected = os.environ.get("OUTBOX_TEST_DRIVER") or pytest.skip("OUTBOX_TEST_DRIVER is not set")
    other = {"psycopg": "psycopg2", "psycopg2": "psycopg"}[expected]

    assert driver.__name__ == expected
    assert importlib.util.find_spec(other) is None


@pytest.mark.django_db
def test_server_is_the_expected_one() -> None:
    """The tests run on the major version of PostgreSQL that the run is for."""
    expected = os.environ.get("OUTBOX_TEST_SERVER") or pytest.skip("OUTBOX_TEST_SERVER is not set")

    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        assert cursor.fetchone()[0][:2] == expected
