import time
from argparse import ArgumentParser

from django.core.management import BaseCommand

from flights import operations, timeline


class Command(BaseCommand):
    help = "Let the flights happen: one transaction for each departure, arrival and cancellation."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--flights", type=int, help="only the first so many flights")
        parser.add_argument("--part", type=int, default=1, help="this process's share, from 1")
        parser.add_argument("--parts", type=int, default=1, help="how many processes share")
        parser.add_argument("--rate", type=float, default=100, help="transactions/s while steady")
        parser.add_argument(
            "--steady", type=float, default=0, help="share of steps before the rush"
        )

    def handle(self, *, flights: int | None, part: int, parts: int, **options: float) -> None:
        steps = timeline.timeline(timeline.read_flights(flights))
        steady = len(steps) / parts * options["steady"]
        start = time.monotonic()
        for done, step in enumerate(timeline.share(steps, part, parts)):
            if done < steady:
                time.sleep(max(0.0, start + done / options["rate"] - time.monotonic()))
            operations.perform(step)
