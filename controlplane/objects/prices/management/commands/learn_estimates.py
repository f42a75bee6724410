from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from controlplane.changes.change.transaction import Actor
from controlplane.core.text import escaped
from controlplane.objects.prices import estimates
from controlplane.objects.prices.actions import learn_estimates


class Command(BaseCommand):
    help = (
        "Learn from the metered usage of the last seven days how many tokens requests have, and publish the numbers "
        "for estimates that have changed. The worker does this every hour."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
        parser.add_argument("--reason", default="", help="the reason, which the audit keeps")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        if options["dry_run"]:
            found, outcome = (
                estimates.changes(estimates.measure(now), now),
                "Nothing was changed, because of --dry-run.",
            )
        else:
            try:
                tx, found = learn_estimates(Actor("learn_estimates", "command"), now, options["reason"])
            except ValidationError as exc:
                raise CommandError(f"Nothing was changed: {' '.join(exc.messages)}") from exc
            outcome = tx.outcome
        for one in found:
            self.stdout.write(escaped(str(one)))
        self.stdout.write(outcome)
