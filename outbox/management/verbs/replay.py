"""Verbs that move cursors: reset, skip."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from ...operations import replay
from ...operations.reset_targets import RangePosition
from ...processes.exit_codes import ExitCode
from .printer import Printer, slots
from .verb import Verb, duration, time_with_zone, whole


class Reset(Verb):
    """move a group's cursors to another position; a dry run unless --execute is given"""

    name = "reset"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--channel", action="append", metavar="C", help="only this channel")
        parser.add_argument("--execute", action="store_true", help="change the cursors")
        parser.add_argument("--export", metavar="F", help="write the new positions to a file")
        parser.add_argument("--reason", default="", help="stored in the action log")
        where = parser.add_mutually_exclusive_group(required=True)
        where.add_argument("--to-earliest", action="store_true", help="before the first message")
        where.add_argument(
            "--to-latest", action="store_true", help="handle only messages published from now on"
        )
        where.add_argument("--to-position", type=int, metavar="N", help="just after a position")
        where.add_argument(
            "--shift-by", type=int, metavar="N", help="by N positions, back if negative"
        )
        where.add_argument(
            "--to-datetime", type=time_with_zone, metavar="T", help="before a time with zone"
        )
        where.add_argument("--by-duration", type=duration, metavar="D", help="to D before now")
        where.add_argument("--to-group", metavar="OTHER", help="to the positions of another group")
        where.add_argument("--from-file", metavar="F", help="to the positions that --export wrote")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write OLD, NEW, DELTA and how many messages will be handled again."""
        moves = replay.reset(
            options["group"],
            position=options["to_position"],
            to_earliest=options["to_earliest"],
            to_latest=options["to_latest"],
            shift_by=options["shift_by"],
            to_time=options["to_datetime"],
            by_duration=options["by_duration"],
            to_group=options["to_group"],
            places=_places(options["from_file"]),
            channels=options["channel"],
            using=options["database"],
            execute=options["execute"],
            reason=options["reason"],
        )
        if options["export"]:
            replay.export(moves, options["export"])
        if printer.as_json:
            printer.json(moves)
        else:
            _print_moves(printer, moves)
        for move in moves:
            if move.clamped:
                where = f"{move.channel} {slots(move.slot_from, move.slot_to)}"
                printer.note(f"{where}: brought to {move.new}, as far as the log goes.")
        if not options["execute"]:
            printer.note("A dry run: nothing was changed. Add --execute to do it.")


class Skip(Verb):
    """move a group past its next message without handling it"""

    name = "skip"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--position", type=whole, required=True, metavar="N")
        parser.add_argument("--reason", required=True, help="stored in the action log")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write what was skipped."""
        row = replay.skip(
            options["group"],
            options["position"],
            reason=options["reason"],
            using=options["database"],
        )
        answer = {
            "group": options["group"],
            "channel": row.channel,
            "old": row.position,
            "new": options["position"],
        }
        if printer.as_json:
            printer.json(answer)
        else:
            printer.line(f"{row.channel}: {row.position} -> {options['position']}, one skipped")


def _places(path: str | None) -> list[RangePosition] | None:
    if path is None:
        return None
    try:
        return replay.read_file(path)
    except OSError as error:
        raise CommandError(str(error), returncode=ExitCode.USAGE) from error


def _print_moves(printer: Printer, moves: list[replay.CursorMove]) -> None:
    rows = [
        [m.channel, slots(m.slot_from, m.slot_to), m.old, m.new, f"{m.delta:+}", *_effect(m)]
        for m in moves
    ]
    printer.table("<CHANNEL SLOTS OLD NEW DELTA AGAIN NOT-HANDLED", rows)


def _effect(move: replay.CursorMove) -> tuple[int, int]:
    return (move.messages, 0) if move.delta < 0 else (0, move.messages)
