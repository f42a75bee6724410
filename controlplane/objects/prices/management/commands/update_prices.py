from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.prices import catalogue
from controlplane.objects.prices.actions import apply_catalogue, lock_prices
from controlplane.objects.prices.differences import Difference, between
from controlplane.objects.prices.models import CATALOGUE, OPERATOR, ModelPrice
from controlplane.objects.prices.seen import unpriced


class Command(BaseCommand):
    help = (
        "Take the prices of models from the catalogue, which is the package genai-prices, and publish them. Prices of "
        "operators stay, and come before those of the catalogue."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
        parser.add_argument(
            "--fetch",
            action="store_true",
            help="fetch the newest list from its publisher on the internet, in place of the one in the package",
        )
        parser.add_argument(
            "--provider",
            action="append",
            metavar="NAME",
            help=f"take the prices of this provider, in place of {', '.join(catalogue.PROVIDERS)}; repeat it for more",
        )
        parser.add_argument("--reason", default="", help="the reason, which the audit keeps")

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.CURRENCY != catalogue.CURRENCY:
            text = f"The catalogue has prices in {catalogue.CURRENCY}, and this installation counts {settings.CURRENCY}"
            raise CommandError(f"{text} (SLUICEGATE_CURRENCY). Set prices of your own.")
        try:
            found = catalogue.read(options["provider"] or catalogue.PROVIDERS, fetch=options["fetch"])
        except catalogue.Unavailable as exc:
            raise CommandError(str(exc)) from exc
        self._left_out(found.left_out, options["verbosity"])
        self._unpriced(found.prices)
        if options["dry_run"]:
            self._show(between(_present(), found.prices))
            self.stdout.write("Nothing was changed, because of --dry-run.")
            return
        try:
            with change(actor=Actor("update_prices", "command"), reason=options["reason"]) as tx:
                lock_prices()
                differences = between(_present(), found.prices)
                apply_catalogue(tx, differences)
        except ValidationError as exc:
            raise CommandError(f"Nothing was changed: {' '.join(exc.messages)}") from exc
        self._show(differences)
        self.stdout.write(tx.outcome)

    def _left_out(self, lines: list[str], verbosity: int) -> None:
        for line in lines if verbosity > 1 else ():
            self.stdout.write(f"left out {line}")
        if lines and verbosity == 1:
            self.stdout.write(f"{len(lines)} models or names of models are left out (--verbosity 2 lists them).")

    def _unpriced(self, prices: list[ModelPrice]) -> None:
        """Name the models that requests asked for and that will have no price."""
        own = ModelPrice.objects.filter(source=OPERATOR)
        for seen in unpriced(timezone.now(), [*own, *prices]):
            self.stdout.write(f"no price for {seen.model}, which {seen.requests:,} requests in 30 days asked for")

    def _show(self, differences: list[Difference]) -> None:
        for difference in differences:
            self.stdout.write(str(difference))
        words = [difference.word for difference in differences]
        counts = ", ".join(f"{words.count(word)} {word}" for word in ("added", "changed", "removed"))
        self.stdout.write(f"Prices in {settings.CURRENCY} for a million tokens: {counts}.")


def _present() -> list[ModelPrice]:
    return list(ModelPrice.objects.filter(source=CATALOGUE))
