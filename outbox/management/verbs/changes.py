"""Verbs that move, hold or reshape a group: reset, pause, resume, skip, scale."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from ... import groups
from ...operations import action_log, pauses, replay, scaling
from ...operations.reset_targets import Place
from .printer import Printer, slots
from .verb import Verb, duration, positive, time_with_zone


class Reset(Verb):
    """move a group's cursors to another position; a dry run unless --execute is given"""

    name = "reset"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--channel", action="append", metavar="C", help="only this channel")
        parser.add_argument("--execute", action="store_true", help="do it")
        parser.add_argument("--export", metavar="F", help="write the new positions to a file")
        parser.add_argument("--reason", default="", help="is kept with the record of the change")
        where = parser.add_mutually_exclusive_group(required=True)
        where.add_argument("--to-earliest", action="store_true", help="before the first message")
        where.add_argument("--to-latest", action="store_true", help="only what comes from now on")
        where.add_argument("--to-position", type=int, metavar="N", help="just after a position")
        where.add_argument("--shift-by", type=int, metavar="N", help="by so many positions, ±")
        where.add_argument(
            "--to-datetime", type=time_with_zone, metavar="T", help="before a time with zone"
        )
        where.add_argument("--by-duration", type=duration, metavar="D", help="so long before now")
        where.add_argument("--to-group", metavar="OTHER", help="where another group stands")
        where.add_argument("--from-file", metavar="F", help="the positions of an --export")

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


class Pause(Verb):
    """let a group rest, until a time or until it is resumed"""

    name = "pause"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        _add_scope(parser)
        parser.add_argument(
            "--until", type=time_with_zone, metavar="T", help="a time with zone; else: resume"
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write where the group rests."""
        rows = pauses.pause(
            options["group"],
            until=options["until"],
            channels=options["channel"],
            reason=options["reason"],
            using=options["database"],
        )
        until = (options["until"] or pauses.FOREVER).isoformat()
        _print_rows(printer, options["group"], rows, {"paused_until": until})


class Resume(Verb):
    """let a paused group go on"""

    name = "resume"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        _add_scope(parser)

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write from where the group goes on."""
        rows = pauses.resume(
            options["group"],
            channels=options["channel"],
            reason=options["reason"],
            using=options["database"],
        )
        _print_rows(printer, options["group"], rows, {"paused_until": None})
        if not rows:
            printer.note("Nothing was paused.")


class Skip(Verb):
    """move a group past its next message without handling it"""

    name = "skip"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--position", type=int, required=True, metavar="N")
        parser.add_argument("--reason", required=True, help="is kept with the record of the change")

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


class Scale(Verb):
    """split or merge the ranges of a group: so many workers can share it"""

    name = "scale"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        _add_scope(parser, several=False)
        parser.add_argument("--to", type=positive, required=True, metavar="N", help="ranges")
        parser.add_argument(
            "--timeout", type=float, default=60.0, metavar="S", help="to wait for workers"
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write the ranges as they are then."""
        group, using = groups.get(options["group"]), options["database"]
        before = len(scaling.describe(group, channel=options["channel"], using=using))
        shape = scaling.scale(
            group,
            options["to"],
            channel=options["channel"],
            using=using,
            timeout=options["timeout"],
        )
        action_log.record(
            "scale",
            group.name,
            using=using,
            old=before,
            new={"to": options["to"], "channel": options["channel"]},
            reason=options["reason"],
        )
        if printer.as_json:
            return printer.json(shape)
        printer.table(
            "<CHANNEL SLOTS POSITION LAG <STATE <OWNER",
            [
                [r.channel, slots(r.slot_from, r.slot_to), r.position, r.lag, r.state, r.owner]
                for r in shape
            ],
        )


def _add_scope(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    action = "append" if several else "store"
    parser.add_argument("group", metavar="GROUP")
    parser.add_argument("--channel", action=action, metavar="C", help="only this channel")
    parser.add_argument("--reason", default="", help="is kept with the record of the change")


def _places(path: str | None) -> list[Place] | None:
    if path is None:
        return None
    try:
        return replay.read_file(path)
    except OSError as error:
        raise CommandError(str(error), returncode=2) from error


def _print_moves(printer: Printer, moves: list[replay.Move]) -> None:
    rows = [
        [m.channel, slots(m.slot_from, m.slot_to), m.old, m.new, f"{m.delta:+}", *_effect(m)]
        for m in moves
    ]
    printer.table("<CHANNEL SLOTS OLD NEW DELTA AGAIN NOT-HANDLED", rows)


def _effect(move: replay.Move) -> tuple[int, int]:
    return (move.messages, 0) if move.delta < 0 else (0, move.messages)


def _print_rows(
    printer: Printer, group: str, rows: list[Any], changed: dict[str, str | None]
) -> None:
    if printer.as_json:
        return printer.json(
            [
                {
                    "group": group,
                    "channel": row.channel,
                    "slot_from": row.slot_from,
                    "slot_to": row.slot_to,
                    "position": row.position,
                    **changed,
                }
                for row in rows
            ]
        )
    end = changed["paused_until"]
    shown = "resumed" if end == pauses.FOREVER.isoformat() else end
    printer.table(
        "<CHANNEL SLOTS POSITION PAUSED-UNTIL",
        [[row.channel, slots(row.slot_from, row.slot_to), row.position, shown] for row in rows],
    )
