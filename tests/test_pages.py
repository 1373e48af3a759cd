"""The pages in docs/ show what the code has."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import outbox
from outbox.changes import installed
from tests.support.processes import ROOT

DOCS = ROOT / "docs"
SETTINGS = DOCS / "settings.md"


def test_the_page_of_settings_shows_every_key_with_its_default():
    """The table is written from the fields and docstrings of `conf.Settings` by `make docs`."""
    command = [sys.executable, ROOT / "docs" / "settings_table.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_reference_shows_the_code():
    """It is written from docstrings, signatures and parsers by `make docs`."""
    command = [sys.executable, ROOT / "docs" / "reference.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", outbox.__all__)
def test_every_public_name_is_in_the_reference_and_in_a_how_to_page(name):
    """Beside the reference, a page of the site's section "How to" shows how it is used."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    section = site.partition("- How to:")[2].partition("- Reference:")[0]
    pages = [
        (DOCS / each).read_text(encoding="utf-8") for each in re.findall(r"- (\S+\.md)", section)
    ]

    assert f"\n### outbox.{name}\n" in (DOCS / "reference.md").read_text(encoding="utf-8")
    assert any(re.search(rf"\boutbox\.{name}\b", text) for text in pages)


def test_the_page_of_settings_lists_every_system_check():
    """Each id that the code gives a finding stands in the table, and no other does."""
    given = re.compile(r'id=f?"outbox\.([EWI]\d{3})"')
    files = {path.name: path.read_text("utf-8") for path in (ROOT / "outbox").rglob("*.py")}
    given_in = [set(given.findall(text)) for text in files.values()] + [set(installed.IDS.values())]
    code = set().union(*given_in)
    shown = set(re.findall(r"`outbox\.([EWI]\d{3})`", SETTINGS.read_text(encoding="utf-8")))

    assert sum(map(len, given_in)) == len(code), "an id means one thing"
    assert code <= shown
    assert shown - code == {"W011", "I011", "W012", "I012"}, "their ids are put together"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_of_the_code_names_exists(page):
    """A path is one of the repository or of the package; a bare name lies somewhere in the package."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(
        re.findall(r"(?<![\w./-])((?:\w+/)*\w+\.(?:py|sql|toml|md)|(?:\w+/)+)(?![\w/.])", text)
    )
    packaged = {path.name for path in (ROOT / "outbox").rglob("*") if path.is_file()}

    assert named
    assert {
        name
        for name in named - {"dist/"}  # a release makes it
        if not any((folder / name).exists() for folder in (ROOT, ROOT / "outbox", ROOT / "docs"))
        and name not in packaged
    } == set()
