"""`manage.py outbox <verb>`: look after consumer groups."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from outbox import groups, replay, status
from outbox.exceptions import OutboxError


class Command(BaseCommand):
    help = "Look after consumer groups."

    def add_arguments(self, parser: ArgumentParser) -> None:
        common = ArgumentParser(add_help=False)
        common.add_argument("--json", action="store_true", help="machine-readable output")
        common.add_argument("--database", default="default", help="database alias")
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        verbs.add_parser("groups", parents=[common], help="list the groups and their lag")
        reset = verbs.add_parser("reset", parents=[common], help="move a group's cursors")
        reset.add_argument("group", metavar="GROUP")
        reset.add_argument("--channel", action="append", help="only this channel")
        reset.add_argument("--execute", action="store_true", help="do it; else a dry run")
        target = reset.add_mutually_exclusive_group(required=True)
        target.add_argument("--to-earliest", action="store_true")
        target.add_argument("--to-latest", action="store_true")
        target.add_argument("--to-position", type=int, metavar="N")

    def handle(self, *args: Any, verb: str, **options: Any) -> None:
        """Run the verb."""
        try:
            getattr(self, f"_{verb}")(options)
        except OutboxError as error:
            raise CommandError(str(error)) from error

    def _groups(self, options: dict[str, Any]) -> None:
        rows = status.list_groups(options["database"])
        if options["json"]:
            self.stdout.write(json.dumps([_plain(row) for row in rows], default=str))
            return
        self.stdout.write(f"{'GROUP':<24} {'POSITION':>12} {'LAG':>10} {'PROCESSED':>12}  ERROR")
        for row in rows:
            self.stdout.write(
                f"{row.group:<24} {row.position:>12} {row.lag:>10} {row.processed:>12}"
                f"  {row.last_error}"
            )

    def _reset(self, options: dict[str, Any]) -> None:
        moves = replay.reset(
            groups.get(options["group"]),
            position=0 if options["to_earliest"] else options["to_position"],
            to_latest=options["to_latest"],
            channels=options["channel"],
            using=options["database"],
            execute=options["execute"],
        )
        if options["json"]:
            self.stdout.write(json.dumps([_plain(move) for move in moves]))
        else:
            self.stdout.write(
                f"{'CHANNEL':<24} {'SLOTS':>12} {'OLD':>12} {'NEW':>12} {'DELTA':>12} {'MESSAGES':>10}"
            )
            for move in moves:
                self.stdout.write(
                    f"{move.channel:<24} {f'{move.slot_from}-{move.slot_to}':>12} {move.old:>12}"
                    f" {move.new:>12} {move.delta:>+12} {move.messages:>10}"
                )
        if not options["execute"]:
            self.stderr.write("A dry run: nothing changed. Add --execute to do it.")


def _plain(row: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(row)
