"""A real Prometheus, where the machine has one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.processes import ROOT

FOLDERS = (ROOT / ".prometheus" / "usr" / "bin", Path("/usr/bin"))


def tool(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; skip the test where there is none."""
    path = os.pathsep.join([os.environ["PATH"], *map(str, FOLDERS)])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not here: apt-get install prometheus, or see .ci/run")
    return found
