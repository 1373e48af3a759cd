"""Bugs to plant in a copy of the project, each of which the rack must find.

`python -m tests.soak.plants NAME [--minutes M] [--seed S]`; exit code 0: the rack found it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SQL = "outbox/migrations/sql/v1"

PLANTS: dict[str, list[tuple[str, str, str]]] = {
    "read-past-the-horizon": [
        (
            f"{SQL}/02_visibility.sql",
            "    WHERE locktype = 'advisory'\n      AND locks.virtualtransaction IN (",
            "    WHERE false AND locktype = 'advisory'\n      AND locks.virtualtransaction IN (",
        ),
    ],
    "advance-before-the-handler": [
        (
            "outbox/consuming/leased.py",
            "                    part.apply(_run(part))\n                outcome = lease.write(part)\n",
            "                    part.apply(Done(len(part.rows), 0))\n"
            "                outcome = lease.write(part)\n"
            "                part.handled = 0\n"
            "                _run(part)\n",
        ),
    ],
    "merge-at-unequal-positions": [
        (
            "outbox/operations/scaling.py",
            "            if are_on_the_way or any(row.is_leased for row in rows):\n",
            "            if any(row.is_leased for row in rows):\n",
        ),
    ],
    "back-off-at-an-old-position": [
        (
            "outbox/consuming/outcomes.py",
            "    with transaction.atomic(using=using):\n        locked = cursors.lock_unchanged(claim, using)\n",
            "    import time\n\n    time.sleep(0.05)\n    with transaction.atomic(using=using):\n        locked = claim\n",
        ),
        (f"{SQL}/08_advancing.sql", "          AND c.position = of_position\n", ""),
        (
            f"{SQL}/08_advancing.sql",
            "          AND (of_transaction IS NULL\n"
            "               OR of_transaction = pg_current_xact_id_if_assigned()::text)\n",
            "",
        ),
        (
            f"{SQL}/08_positions.sql",
            "    ELSIF NEW.position < OLD.position AND NEW.generation <= OLD.generation THEN",
            "    ELSIF false THEN",
        ),
    ],
    "renew-a-lost-lease": [
        (
            "outbox/sql/cursors.sql",
            "WHERE id = %(id)s\n"
            "  AND generation = %(generation)s\n"
            "  AND lease_token = %(lease_token)s\n"
            "  AND leased_until IS NOT NULL\n",
            "WHERE id = %(id)s\n"
            "  AND leased_until IS NOT NULL\n"
            "  AND %(generation)s::integer IS NOT NULL AND %(lease_token)s::bigint IS NOT NULL\n",
        ),
    ],
}


def plant(name: str, folder: Path) -> None:
    """Copy what the rack needs into a folder, with the bug in it."""
    for part in ("outbox", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path, old, new in PLANTS[name]:
        text = (folder / path).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} does not hold once what {name} replaces"
        (folder / path).write_text(text.replace(old, new), encoding="utf-8")


def main() -> int:
    """Run the rack on a tree with a bug; return 0 if it found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.plants", description=__doc__)
    parser.add_argument("name", choices=PLANTS)
    parser.add_argument("--minutes", default="3")
    parser.add_argument("--seed", default="1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plant-") as folder:
        plant(options.name, Path(folder))
        command = ["-m", "tests.soak", "--minutes", options.minutes, "--seed", options.seed]
        code = subprocess.run([sys.executable, *command], cwd=folder, check=False).returncode
    print(f"{options.name}: {'found' if code else 'NOT FOUND'}")
    return 0 if code else 1


if __name__ == "__main__":
    sys.exit(main())
