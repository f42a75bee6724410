from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.publishing import publisher
from controlplane.publishing.models import OutboxEntry
from controlplane.publishing.reconcile import queue_unknown_tokens
from enforcement.model.documents import MAX_EPOCH
from enforcement.store.client import STORE_ERRORS

MOST_REASON = 500


class Command(BaseCommand):
    help = "Publish the pending changes. With --all, write every document, which rebuilds the store."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--all", action="store_true", help="write every document and token, not only the changed ones"
        )
        parser.add_argument(
            "--new-epoch",
            action="store_true",
            help="with --all and --reason: have all enforcers obey the state of SQL, also those that ran a later "
            "revision, as after a restore or a move",
        )
        parser.add_argument("--reason", default="", help="the reason for the new epoch, which the audit keeps")

    def handle(self, *args: Any, **options: Any) -> None:
        reason = _reason_of(options)
        try:
            revision = self._publish(options["all"], reason)
        except (*STORE_ERRORS, publisher.Postponed) as exc:
            raise CommandError(f"Nothing was published, and the changes stay pending: {exc}") from exc
        if revision is None and OutboxEntry.objects.filter(revision=None).exists():
            raise CommandError("Another publisher is at work. The changes stay pending, and the worker publishes them.")
        self.stdout.write(f"Published revision {revision}." if revision else "Nothing was pending.")

    def _publish(self, everything: bool, reason: str) -> int | None:
        if not everything:
            return publisher.publish_pending()
        unknown = queue_unknown_tokens()
        if unknown:
            self.stdout.write(f"Deleting {unknown} tokens that are not in SQL.")
        if reason:
            if publisher.last_state().epoch >= MAX_EPOCH:
                raise CommandError(f"--new-epoch: must not follow epoch {MAX_EPOCH}, which is the last one.")
            return publisher.begin_epoch(by="publish --all --new-epoch", channel="command", reason=reason)
        return publisher.publish_all(by="publish --all", channel="command")


def _reason_of(options: dict[str, Any]) -> str:
    """Return the reason for a new epoch, or an empty string if none begins. Raises CommandError."""
    reason: str = options["reason"].strip()
    if not options["new_epoch"]:
        if reason:
            raise CommandError("--reason: is only used with --new-epoch.")
        return ""
    if not options["all"]:
        raise CommandError("--new-epoch: requires --all, because a new epoch begins with every document.")
    if not 1 <= len(reason) <= MOST_REASON:
        raise CommandError(f"--reason: must have 1 to {MOST_REASON} characters, got {len(reason)}.")
    return reason
