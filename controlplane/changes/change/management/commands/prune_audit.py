from argparse import ArgumentParser
from datetime import UTC, date, datetime, time
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from controlplane.changes.audit import chain
from controlplane.changes.change.transaction import Actor, change


class Command(BaseCommand):
    help = (
        "Delete the sealed audit entries from before a day. The audit records how many they were, why they were "
        "deleted, and where the chain of the others begins. Export them before."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--before", type=date.fromisoformat, required=True, help="a day (UTC) such as 2026-01-31")
        parser.add_argument("--reason", required=True, help="the reason, which the audit keeps")

    def handle(self, *args: Any, **options: Any) -> None:
        before, reason = datetime.combine(options["before"], time(), UTC), options["reason"].strip()
        if before > timezone.now():
            raise CommandError(f"--before: must not be in the future, got {options['before']}.")
        if not 1 <= len(reason) <= 500:
            raise CommandError(f"--reason: must have 1 to 500 characters, got {len(reason)}.")
        if broken := next(chain.verify(timezone.now()), None):
            raise CommandError(f"Nothing was deleted, because the chain is broken: {broken}")
        try:
            with change(actor=Actor("prune_audit", "command"), reason=reason) as tx:
                count = chain.prune(tx, before)
        except ValidationError as exc:
            raise CommandError(f"Nothing was deleted: {' '.join(exc.messages)}") from exc
        self.stdout.write(f"{count:,} entries deleted." if count else "No sealed entry is older. Nothing was deleted.")
