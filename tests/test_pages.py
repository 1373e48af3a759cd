"""The pages in docs/ show what the code has."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.processes import ROOT

SETTINGS = ROOT / "docs" / "settings.md"


def test_the_page_of_settings_shows_every_key_with_its_default():
    """The table is written from the fields and docstrings of `conf.Settings` by `make docs`."""
    command = [sys.executable, ROOT / "docs" / "settings_table.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_of_settings_lists_every_system_check():
    """Each id that the code gives a finding stands in the table, and no other does."""
    given = re.compile(r'id=f?"outbox\.([EWI]\d{3})"')
    code = {
        found
        for path in (ROOT / "outbox").rglob("*.py")
        for found in given.findall(path.read_text(encoding="utf-8"))
    }
    shown = set(re.findall(r"`outbox\.([EWI]\d{3})`", SETTINGS.read_text(encoding="utf-8")))

    assert code <= shown
    assert shown - code == {"W011", "I011", "W012", "I012"}, "their ids are put together"
