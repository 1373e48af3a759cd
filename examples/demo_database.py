"""The database of an example: one of its own on the server of DATABASE_URL, or on one that leaves no trace."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import django
from django.db.utils import ConnectionHandler

from outbox import embedded


@contextmanager
def demo_database(example: str) -> Iterator[str]:
    """Make a database and let Django use it, here and in every child process; give the server's name in words."""
    if url := os.environ.get("DATABASE_URL"):
        with _database(url, example):
            yield "the server of DATABASE_URL"
    else:
        with embedded.Server() as throw_away, _database(throw_away.url, example):
            yield "a throw-away server"


@contextmanager
def _database(url: str, example: str) -> Iterator[None]:
    name = f"{example}_demo_{os.getpid()}"
    os.environ["DATABASE_URL"] = urlsplit(url)._replace(path=f"/{name}").geturl()
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    django.setup()
    connection = ConnectionHandler({"default": embedded.database_from_url(url)})["default"]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
        connection.close()
