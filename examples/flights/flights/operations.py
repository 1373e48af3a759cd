"""The business: one transaction changes a flight and publishes what happened to it."""

from typing import Any

from django.db import transaction

import outbox

from .events import Arrived, Cancelled, Departed
from .models import Flight
from .timeline import FlightRecord, Kind, Step


def schedule(flights: list[FlightRecord]) -> None:
    """Store the flight plan, before anything happens."""
    Flight.objects.bulk_create(
        [
            Flight(
                number=flight.number,
                carrier=flight.carrier,
                tail=flight.tail,
                origin=flight.origin,
                dest=flight.dest,
                scheduled=flight.scheduled,
            )
            for flight in flights
        ],
        batch_size=5_000,
    )


def perform(step: Step) -> None:
    """Let one step of the timeline happen."""
    match step.kind:
        case Kind.DEPARTED:
            depart(step)
        case Kind.ARRIVED:
            arrive(step)
        case Kind.CANCELLED:
            cancel(step)


def depart(step: Step) -> None:
    flight = Flight.objects.filter(pk=step.number)
    with transaction.atomic():
        flight.update(state=Flight.State.DEPARTED, departed=step.at)
        delay = step.flight.departure_delay or 0
        outbox.publish(Departed(**identity(step.flight), at=step.at, delay=delay))


def arrive(step: Step) -> None:
    flight = Flight.objects.filter(pk=step.number)
    with transaction.atomic():
        flight.update(state=Flight.State.ARRIVED, arrived=step.at)
        outbox.publish(
            Arrived(
                **identity(step.flight),
                at=step.at,
                day=step.flight.day,
                delay=step.flight.arrival_delay,
                miles=step.flight.miles,
            )
        )


def cancel(step: Step) -> None:
    flight = Flight.objects.filter(pk=step.number)
    with transaction.atomic():
        flight.update(state=Flight.State.CANCELLED)
        outbox.publish(Cancelled(**identity(step.flight), at=step.at))


def identity(flight: FlightRecord) -> dict[str, Any]:
    """What every message says about its flight."""
    return {
        "flight": flight.number,
        "tail": flight.tail,
        "carrier": flight.carrier,
        "origin": flight.origin,
        "dest": flight.dest,
    }
