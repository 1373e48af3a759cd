"""Alert rules and dashboard, read by a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from outbox.models import ParkedMessage
from tests.monitoring.test_health import free_port
from tests.shop.models import Effect, Fault
from tests.support.harness import insert
from tests.support.processes import ROOT, manage, wait_until
from tests.support.prometheus import tool
from tests.support.publishing import publish_order, publish_orders
from tests.test_supervisor import children

HERE = Path(__file__).parent
CONFIG = """
global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs:
  - {{job_name: exporter, static_configs: [{{targets: ["127.0.0.1:{exporter}"]}}]}}
  - {{job_name: workers, static_configs: [{{targets: ["127.0.0.1:{workers}"]}}]}}
"""


@pytest.fixture
def exported(tmp_path, db):
    """A folder with the files of `outbox monitoring export`."""
    done = manage("outbox", "monitoring", "export", str(tmp_path / "files"))
    assert done.returncode == 0, done.stderr
    return tmp_path / "files"


@pytest.mark.django_db(transaction=True)
def test_promtool_accepts_the_rules_and_each_fires_and_clears(exported):
    """`promtool check rules` and `promtool test rules`: each rule by its own numbers and texts."""
    promtool = tool("promtool")
    shutil.copy(HERE / "outbox.rules.test.yml", exported)
    checked = subprocess.run(
        [promtool, "check", "rules", exported / "outbox.rules.yml"],
        capture_output=True,
        check=False,
    )
    tested = subprocess.run(
        [promtool, "test", "rules", "outbox.rules.test.yml"],
        cwd=exported,
        capture_output=True,
        text=True,
        check=False,
    )
    rules = set(re.findall(r"alert: (\w+)", (exported / "outbox.rules.yml").read_text()))
    fired = set(
        re.findall(r"alertname: (\w+)\n +exp_alerts", (HERE / "outbox.rules.test.yml").read_text())
    )

    assert checked.returncode == 0, checked.stderr
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert fired == rules


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: object):
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=60
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is starting
                return None
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        except (urllib.error.URLError, ConnectionError):
            return None

    def query(self, expression: str):
        found = self.get("query", query=expression)
        return found and found["result"]

    def is_firing(self, alert: str, **labels: str) -> bool:
        wanted = {"alertname": alert, **labels}
        return any(
            each["state"] == "firing" and wanted.items() <= each["labels"].items()
            for each in self.get("alerts")["alerts"]
        )


@pytest.fixture
def prometheus(exported, tmp_path, start_command):
    """A Prometheus that scrapes an exporter, and workers at the returned port; its rules wait for a
    second where they would wait for minutes."""
    program = tool("prometheus")
    rules = exported / "outbox.rules.yml"
    hasty = re.sub(r"for: \d+m", "for: 1s", rules.read_text())
    rules.write_text(hasty.replace("held_seconds > 60", "held_seconds > 1"))
    ports = {"exporter": free_port(), "workers": free_port()}
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(rules=rules, **ports))
    start_command("outbox", "exporter", "--port", str(ports["exporter"]))
    port = free_port()
    process = subprocess.Popen(
        [
            program,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ],
        stdout=sys.stderr,
    )
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: server.query("outbox_up == 1"))
        yield server, ports["workers"]
    finally:
        process.terminate()
        process.wait(120)


def expressions(folder):
    """The expressions of the dashboard, with their variables filled in."""
    dashboard = json.loads((folder / "outbox.dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "30s").replace("$group", ".*")
            yield panel["title"], text


@pytest.mark.django_db(transaction=True)
def test_alerts_fire_and_clear_and_the_dashboard_has_data(
    prometheus, exported, start_command, connect
):
    """A killed worker and a publisher idle in transaction each raise their alert until they are
    gone; every expression of the dashboard returns data."""
    server, port = prometheus
    began = time.time()
    work = ("consume", "doomed", "--processes", "1", "--health-port", str(port))
    supervisor = start_command(*work)
    Fault.objects.create(group="doomed")
    publish_orders(50)
    publish_order(999, note="fragile")
    wait_until(ParkedMessage.objects.exists)
    wait_until(lambda: Effect.objects.count() == 50)
    wait_until(lambda: server.is_firing("OutboxMessagesParked", group="doomed"))
    for panel, text in expressions(exported):
        wait_until(
            lambda text=text: publish_order(1000) and server.query(text),
            message=f"no data in {panel!r}: {text}",
        )

    wait_until(lambda: not server.is_firing("OutboxGroupStopped", group="doomed"))
    for pid in [supervisor.pid, *children(supervisor)]:
        os.kill(pid, signal.SIGKILL)
    publish_orders(5)
    wait_until(lambda: server.is_firing("OutboxGroupStopped", group="doomed"))
    start_command(*work)
    wait_until(lambda: not server.is_firing("OutboxGroupStopped", group="doomed"))
    wait_until(lambda: not server.is_firing("OutboxHorizonHeld"))
    session = connect()
    session.autocommit = False
    insert(session)
    publish_orders(5)
    wait_until(lambda: server.is_firing("OutboxHorizonHeld"))
    session.rollback()
    wait_until(lambda: not server.is_firing("OutboxHorizonHeld"))

    if picture := os.environ.get("OUTBOX_TEST_PICTURE"):
        seconds = str(time.time() - began)
        script = str(ROOT / "docs" / "dashboard_pictures.py")
        subprocess.run([sys.executable, script, server.url, seconds, picture], check=True)
