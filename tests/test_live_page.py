"""The example of a live page: every message in order across a restart of the server."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

import pytest

from outbox.embedded import database_from_url
from tests.support import server
from tests.support.processes import ROOT, open_session, wait_until

FOLDER = ROOT / "examples" / "live"
NOTES = 60


@pytest.fixture
def live():
    """The example's server on a database of its own; calling it starts the server anew."""
    database = database_from_url(server.database_url())
    session = open_session(database)
    session.cursor().execute("DROP DATABASE IF EXISTS outbox_live WITH (FORCE)")
    session.cursor().execute("CREATE DATABASE outbox_live")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = {"HOST": "PGHOST", "PORT": "PGPORT", "USER": "PGUSER", "PASSWORD": "PGPASSWORD"}
    variables = {v: str(database[n]) for n, v in names.items() if database.get(n)}
    environment = {**os.environ, **variables, "LIVE_DATABASE": "outbox_live"}
    environment |= {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(ROOT)}
    running = []

    def start():
        while running:
            running[0].kill()
            running.pop().wait()
        command = [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
        running.append(
            subprocess.Popen(
                command,
                cwd=FOLDER,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        wait_until(lambda: answers(port))
        return port

    migrated = subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v0"],
        cwd=FOLDER,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert migrated.returncode == 0, migrated.stderr
    yield start
    for process in running:
        process.kill()
        process.wait()
    session.cursor().execute("DROP DATABASE outbox_live WITH (FORCE)")
    session.close()


def answers(port):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
    except OSError:
        return False
    return True


def write(port, text):
    """Publish a note; try again while the server is away."""
    data = urllib.parse.urlencode({"text": text}).encode()
    wait_until(lambda: posted(port, data))


def posted(port, data):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/notes", data, timeout=120).close()
    except ConnectionError:
        return False
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            return False
        raise
    return True


class Browser(threading.Thread):
    """What a browser's EventSource does: it reconnects with the last id that it saw."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.seen, self.last, self.connections = port, [], "", 0
        self.is_leaving = False

    def run(self):
        while not self.is_leaving:
            try:
                self.listen()
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)

    def listen(self):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/stream?after=0")
        if self.last:
            request.add_header("Last-Event-ID", self.last)
        with urllib.request.urlopen(request, timeout=60) as response:
            self.connections += 1
            event = {}
            for line in response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    event[name] = value
                elif "id" in event:
                    self.last = event["id"]
                    self.seen.append(event["data"])
                    event = {}
                if self.is_leaving:
                    return


def test_the_page_shows_every_message_in_order_across_a_restart(live):
    """The server is killed in the middle: no gap and no double, by the ids alone."""
    port = live()
    browser = Browser(port)
    browser.start()
    for number in range(NOTES):
        write(port, f"note {number}")
        if number == NOTES // 2:
            wait_until(lambda: browser.connections and browser.seen)
            live()
    wait_until(lambda: len(browser.seen) >= NOTES)
    browser.is_leaving = True

    assert browser.seen == [f'{{"text": "note {number}"}}' for number in range(NOTES)]
    assert browser.connections >= 2


def test_a_real_browser_shows_every_message_across_a_restart(live, browser):
    """Chromium's own EventSource: the server is killed in the middle, and the page has each note once,
    in order."""
    port = live()
    browser.driver.get(f"http://127.0.0.1:{port}/")

    def shown():
        script = "return Array.from(document.querySelectorAll('#notes li'), e => e.textContent)"
        return browser.driver.execute_script(script)

    for number in range(NOTES):
        write(port, f"note {number}")
        if number == NOTES // 2:
            wait_until(shown)
            live()
    wait_until(lambda: len(shown()) >= NOTES)

    assert shown() == [f"note {number}" for number in range(NOTES)]
