"""Make transfers between accounts chosen by chance."""

import random
import uuid
from decimal import Decimal

from django.core.management import BaseCommand

from bank.models import Account
from bank.transfers import Refused, transfer


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser):
        parser.add_argument("--transfers", type=int, default=100)
        parser.add_argument("--seed", type=int, default=0)

    def handle(self, *args, transfers, seed, **options):
        chance = random.Random(seed)
        accounts = list(Account.objects.order_by("number").values_list("number", "customer"))
        made = refused = conflicts = 0
        for _ in range(transfers):
            source, customer = chance.choice(accounts)
            target, _ = chance.choice([each for each in accounts if each[1] != customer])
            try:
                amount = Decimal(chance.randrange(100, 20000)) / 100
                conflicts += transfer(uuid.uuid4().hex, source, target, amount)
                made += 1
            except Refused:
                refused += 1
        self.stdout.write(f"{made} made, {refused} refused, {conflicts} conflicts")
