from django.core.management import BaseCommand, call_command
from django.db import transaction

from flights.models import CarrierDay


class Command(BaseCommand):
    help = "Build the delay statistics again from the first message, while workers run."

    def handle(self, **options: object) -> None:
        # The reset locks the group's cursor until the commit, so no worker can add to the sums
        # between the reset and the delete: sums and cursor start again together.
        with transaction.atomic():
            call_command("outbox", "reset", "delays", "--to-earliest", "--execute")
            CarrierDay.objects.all().delete()
