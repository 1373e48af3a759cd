"""The verb that checks the database and the settings: doctor."""

from __future__ import annotations

from typing import Any

from ...operations import doctor
from .printer import Printer
from .verb import Verb, failed_check


class Doctor(Verb):
    """check the database and the settings: exit code 3 if a check fails"""

    name = "doctor"

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per check, and the fix below it."""
        findings = doctor.run_checks(options["database"])
        if printer.as_json:
            printer.json(findings)
        else:
            for each in findings:
                level = printer.status(f"{each.level:<4}")
                printer.line(f"{level}  {each.check:<12}  {each.detail}")
                if each.fix:
                    printer.line(f"{'':<20}{each.fix}")
        failed = [each.check for each in findings if each.level == "fail"]
        if failed:
            raise failed_check(f"Failed: {', '.join(failed)}")
