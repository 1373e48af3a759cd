"""What the demo shows: a header, what happens when, live progress, and one table."""

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from flights.marks import Report

PLAIN_EVERY = 5.0  # seconds between two lines of progress where there is no terminal

HEADER = """\

[bold]django-pgoutbox[/]: an event log inside Postgres

{flights:,} flights left New York in January 2013. Each departure, arrival and
cancellation is one transaction: a row changes and a message is published.
Four consumer groups follow, while a worker is killed and a group is replayed.
"""


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or task.finished_speed or 0:,.0f}/s".rjust(8), style="dim")


class Screen(AbstractContextManager["Screen", None]):
    """Progress bars at the foot of a terminal; elsewhere a plain line now and then."""

    def __init__(self, flights: int) -> None:
        self.console = Console(highlight=False)
        self.started = time.monotonic()
        self.next_line = PLAIN_EVERY
        self.bars: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description:>18}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>6,.0f} of {task.total:>6,.0f}"),
            Rate(),
            console=self.console,
            speed_estimate_period=5,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.print(HEADER.format(flights=flights))

    def __exit__(self, *_: object) -> None:
        self.unfollow()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def print(self, *lines: str | Table) -> None:
        for line in lines:
            self.console.print(line, soft_wrap=not self.console.is_terminal)

    def say(self, text: str) -> None:
        """Tell what happens, with the seconds since the start."""
        self.print(f"[dim]{self.seconds:6.1f} s[/]  {text}")

    def follow(self, totals: Mapping[str, int]) -> None:
        """Show one more bar for each name."""
        for name, total in totals.items():
            self.bars[name] = self.progress.add_task(name, total=total)
        self.progress.start()

    def unfollow(self) -> None:
        self.progress.stop()

    def update(self, done: Mapping[str, int]) -> None:
        for name, bar in self.bars.items():
            self.progress.update(bar, completed=done[name])
        if self.progress.disable and self.seconds >= self.next_line:
            self.next_line = self.seconds + PLAIN_EVERY
            self.say("  ".join(f"{name} {done[name]:,}" for name in self.bars))


def result_table(reports: Iterable[Report], padding: int = 0) -> Table:
    """One row for each group; narrow enough for a terminal of 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, padding), show_edge=False)
    table.add_column("group")
    for column in ("published", "processed", "replayed", "lost", "doubled"):
        table.add_column(column, justify="right", vertical="bottom")
    for column in ("out of\norder", "wrong", "msgs/s", "p50\nms", "p99\nms"):
        table.add_column(column, justify="right", vertical="bottom")
    for report in reports:
        faults = (report.lost, report.doubled, report.out_of_order, report.wrong)
        table.add_row(
            f"[bold]{report.name}",
            *(f"{count:,}" for count in (report.published, report.processed, report.replayed)),
            *(f"[{'red' if count else 'green'}]{count:,}" for count in faults),
            f"{report.rate:,.0f}",
            *(
                f"{wait:,.0f}" if wait >= 100 else f"{wait:.1f}"
                for wait in (report.p50, report.p99)
            ),
        )
    return table
