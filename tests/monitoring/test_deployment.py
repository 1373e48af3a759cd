"""The files of examples/deployment: what they start starts, answers its probe and stops in time."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from outbox.models import Cursor
from tests.monitoring.test_health import free_port, get
from tests.support.processes import ROOT, wait_until
from tests.support.publishing import publish_orders

FILES = ROOT / "examples" / "deployment"
pytestmark = pytest.mark.django_db(transaction=True)


def commands():
    """The arguments of `manage.py` in each file, by its name."""
    unit = (FILES / "outbox-billing.service").read_text()
    image = (FILES / "Dockerfile").read_text()
    pods = (FILES / "kubernetes.yaml").read_text()
    return {
        "systemd": re.search(r"ExecStart=\S+ manage\.py (.*)", unit)[1].split(),
        "container": json.loads(re.search(r"^CMD (\[.*\])$", image, re.MULTILINE)[1])[2:],
        "kubernetes": re.search(r"args: \[python, manage\.py, (.*)\]", pods)[1]
        .replace('"', "")
        .split(", "),
    }


@pytest.mark.parametrize("where", ["systemd", "container", "kubernetes"])
def test_the_command_starts_answers_its_probes_and_stops(start_command, where):
    """Each command handles messages; its probes succeed; SIGTERM to it alone ends it with code 0,
    which it does not have after its grace."""
    port = str(free_port())
    process = start_command(*[each.replace("8001", port) for each in commands()[where]])
    publish_orders(3)
    wait_until(lambda: Cursor.objects.filter(group="billing", processed=3).exists())
    image = (FILES / "Dockerfile").read_text()
    probe = json.loads(re.search(r"\\\n +CMD (\[.*\])", image)[1].replace("8001", port))
    probed = subprocess.run([sys.executable, *probe[1:]], capture_output=True, check=False)
    paths = re.findall(r'path: "?(/[^",}]+)', (FILES / "kubernetes.yaml").read_text())
    wait_until(lambda: all(get(f"http://127.0.0.1:{port}{path}")[0] == 200 for path in paths))
    process.terminate()
    process.communicate(timeout=120)

    assert probed.returncode == 0, probed.stderr
    assert len(paths) == 3
    assert process.returncode == 0


def test_the_probe_of_the_container_fails_without_a_worker():
    """Nothing at the port: the probe ends with another code than 0."""
    image = (FILES / "Dockerfile").read_text()
    probe = json.loads(re.search(r"\\\n +CMD (\[.*\])", image)[1].replace("8001", str(free_port())))

    assert subprocess.run([sys.executable, *probe[1:]], capture_output=True).returncode != 0
