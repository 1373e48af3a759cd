from argparse import ArgumentParser

from django.core.management import BaseCommand

from flights import operations, timeline


class Command(BaseCommand):
    help = "Store the flight plan of January 2013, before anything happens."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--flights", type=int, help="only the first so many flights of the file"
        )

    def handle(self, *, flights: int | None, **options: object) -> None:
        operations.schedule(timeline.read_flights(flights))
