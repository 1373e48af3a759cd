"""The example of the bank checks itself, with kills and a replay."""

from __future__ import annotations

import subprocess
import sys

from tests.support.processes import ROOT


def test_a_small_bank_ends_without_a_violation():
    """Eight writers, killed processes and a replay of the statements: every invariant holds."""
    arguments = ["bank", "--transfers", "8", "--kills", "3"]

    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=ROOT,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(": 0 violations") == 8
    assert "was killed" in run.stdout
