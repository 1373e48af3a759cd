"""Run the contracts and the mistakes of the first hour with each supported Python and Django.

`python tests/versions.py` takes all pairs whose Python is on this machine (on PATH, or of pyenv) and
names the others; `python tests/versions.py 3.13:6.1` takes one; what follows `--` goes to pytest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAIRS = ["3.11:5.2", "3.12:5.2", "3.12:6.0", "3.12:6.1", "3.13:5.2", "3.13:6.0", "3.13:6.1"]
"""Django 6.0 and 6.1 need Python 3.12."""
TESTS = ["tests/test_environment.py", "tests/contracts", "tests/test_mistakes.py"]
NEEDED = ("pytest", "hypothesis", "embedded")


def interpreter(version: str) -> str | None:
    """Return the path of a Python of that version, None without one."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for found in (shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")):
        if found is not None and not subprocess.run([found, "-V"], capture_output=True).returncode:
            return str(found)
    return None


def environment(python: str, pair: str) -> Path:
    """Return the Python of a virtual environment with the package, the Django and the tests' tools."""
    folder = ROOT / ".venv-versions" / pair.replace(":", "-")
    own, ready = folder / "bin/python", folder / "ready"
    pyproject = ROOT / "pyproject.toml"
    if ready.exists() and ready.stat().st_mtime > pyproject.stat().st_mtime:
        return own
    dev = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]["dev"]
    tools = [line for line in dev if line.startswith(NEEDED)]
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    django = f"Django=={pair.partition(':')[2]}.*"
    subprocess.run([*pip, "--editable", str(ROOT), django, *tools], check=True)
    ready.touch()
    return own


def main(arguments: list[str]) -> int:
    """Run the pairs that are named, all by default; return 1 when one of them failed."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    pairs, options = arguments[:cut] or PAIRS, arguments[cut + 1 :] or TESTS
    results = {}
    for pair in pairs:
        python = interpreter(pair.partition(":")[0])
        if python is None:
            results[pair] = "skipped: this machine has no such Python"
            continue
        began = time.monotonic()
        print(f"==> Python and Django {pair}", flush=True)
        test = [environment(python, pair), "-m", "pytest", "-q", *options]
        code = subprocess.run(test, cwd=ROOT, env={**os.environ, "OUTBOX_TEST_DRIVER": "psycopg2"})
        seconds = time.monotonic() - began
        results[pair] = f"{'failed' if code.returncode else 'passed'} in {seconds:.0f} s"
    for pair, result in results.items():
        print(f"{pair:<10} {result}")
    return int(any(result.startswith("failed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
