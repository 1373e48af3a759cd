#!/usr/bin/env python
"""A bank on streams: eight writers transfer money, some are killed, the statements are replayed.

Uses the server of DATABASE_URL, or starts one that leaves no trace; either way in a database of
its own, dropped at the end. Exits with 1 if an invariant of the bank is violated.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
from demo_database import demo_database

MANAGE = Path(__file__).with_name("manage.py")
OPENING = Decimal(200)


def main() -> int:
    parser = argparse.ArgumentParser(description="Transfer money and check every invariant.")
    for name, default, meaning in (
        ("writers", 8, "processes that make transfers"),
        ("transfers", 150, "transfers of each writer"),
        ("customers", 12, "customers, with three accounts each"),
        ("kills", 6, "processes that are killed on the way"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=meaning)
    options = parser.parse_args()
    with demo_database("bank"):
        return Bank(options).run()


class Bank:
    """The processes of one run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stack = ExitStack()
        self.chance = random.Random(7)

    def run(self) -> int:
        """Play it from the first account to the last check; return the exit code."""
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        total = self._open_accounts()
        workers = [self._start("consume", "statements") for _ in range(2)]
        try:
            self._trade(workers)
        finally:
            for process in workers:
                process.terminate()
                process.wait()
        self._replay()
        return self._check(total)

    def _open_accounts(self) -> Decimal:
        from django.db import transaction

        from bank.events import Opened
        from bank.models import Account

        for number in range(3 * self.options.customers):
            with transaction.atomic():
                opened = Opened(
                    account=f"{number:03}", customer=f"customer {number // 3}", amount=OPENING
                )
                Account().record(opened)
        print(f"{3 * self.options.customers} accounts opened with {OPENING} each")
        return 3 * self.options.customers * OPENING

    def _trade(self, workers: list[subprocess.Popen[str]]) -> None:
        """Let the writers run; kill some processes, and let others go on in their place."""
        kills = self.options.kills
        writers = {n: self._writer(n) for n in range(self.options.writers)}
        while writers:
            time.sleep(0.5)
            if kills:
                kills -= 1
                if kills % 3 == 2:
                    workers.append(self._replace(workers.pop(0), "consume", "statements"))
                    print("a worker was killed, another one takes over")
                else:
                    number = self.chance.choice(list(writers))
                    writers[number].kill()
                    writers[number].communicate()
                    writers[number] = self._writer(100 * kills + number)
                    print("a writer was killed in the middle of its transfers, another one starts")
            for number, process in list(writers.items()):
                if process.poll() is not None:
                    output = process.communicate()[0].strip()
                    print(f"writer {number}: {output}")
                    if process.returncode:
                        raise SystemExit(1)
                    del writers[number]

    def _replay(self) -> None:
        """Empty the statements and reset the group, in one transaction; then let it catch up."""
        from django.db import transaction

        from bank.models import Line
        from outbox.operations import replay

        with transaction.atomic():
            lines, _ = Line.objects.all().delete()
            replay.reset("statements", to_earliest=True, reason="the demo replays them")
        print(f"{lines} lines of statements deleted; the group reads the log again")
        subprocess.run([sys.executable, MANAGE, "consume", "statements", "--drain"], check=True)

    def _check(self, total: Decimal) -> int:
        from bank.verify import checks

        violated = 0
        for what, violations in checks(total):
            print(f"{'ok  ' if not violations else 'FAIL'} {what}: {violations} violations")
            violated += violations
        return int(violated > 0)

    def _writer(self, seed: int) -> subprocess.Popen[str]:
        transfers = str(self.options.transfers)
        return self._start("trade", "--seed", str(seed), "--transfers", transfers)

    def _replace(self, process: subprocess.Popen[str], *arguments: str) -> subprocess.Popen[str]:
        process.kill()
        process.wait()
        return self._start(*arguments)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, MANAGE, *arguments], stdout=subprocess.PIPE, text=True
        )


if __name__ == "__main__":
    sys.exit(main())
