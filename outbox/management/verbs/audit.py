"""The verb that compares the counters with the log: audit."""

from __future__ import annotations

import argparse
from typing import Any

from ...operations import audit
from .printer import Printer
from .verb import Verb, failed_check


class Audit(Verb):
    """compare a group's counters with the log since its last reset: exit code 3 if they differ"""

    name = "audit"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write the account of each channel."""
        account = audit.audit(options["group"], options["database"])
        if printer.as_json:
            printer.json(account)
        else:
            names = ("channel", "messages", "processed", "skipped", "parked", "difference")
            printer.table(
                "<CHANNEL MESSAGES PROCESSED SKIPPED PARKED DIFFERENCE",
                [[getattr(each, name) for name in names] for each in account.channels],
            )
            for each in account.channels:
                if each.is_trimmed and each.difference < 0:
                    printer.note(
                        f"Retention has removed messages of channel {each.channel} that the group "
                        "had handled: the audit can only show what was passed over."
                    )
        findings = [f"{c.channel}: {text}" for c in account.channels for text in c.findings]
        if findings:
            raise failed_check(f"{account.group}: {'; '.join(findings)}")
