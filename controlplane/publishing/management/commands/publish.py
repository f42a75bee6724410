from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.publishing import publisher
from controlplane.publishing.reconcile import queue_unknown_tokens
from enforcement.store.client import STORE_ERRORS


class Command(BaseCommand):
    help = "Publish the pending changes. With --all, write every document, which rebuilds the store."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--all", action="store_true", help="write every document and token, not only the changed ones"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            revision = self._publish(options["all"])
        except (*STORE_ERRORS, publisher.Postponed) as exc:
            raise CommandError(f"Nothing was published, and the changes stay pending: {exc}") from exc
        self.stdout.write(f"Published revision {revision}." if revision else "Nothing was pending.")

    def _publish(self, everything: bool) -> int | None:
        if not everything:
            return publisher.publish_pending()
        unknown = queue_unknown_tokens()
        if unknown:
            self.stdout.write(f"Deleting {unknown} tokens that are not in SQL.")
        return publisher.publish_all(by="publish --all", channel="command")
