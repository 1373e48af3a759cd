"""A short run of the rack, as part of the suite."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

SECONDS = 40


@pytest.mark.soak
@pytest.mark.skipif("OUTBOX_TEST_SOAK" not in os.environ, reason="OUTBOX_TEST_SOAK is not set")
@pytest.mark.timeout(600)
def test_nothing_is_lost_doubled_or_stuck_on_the_rack():
    """Publishers, workers, operators and faults for 40 seconds: the checker finds nothing."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "OUTBOX_TEST_DB")
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--minutes", str(SECONDS / 60), "--seed", "7"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "findings: 0" in done.stdout
