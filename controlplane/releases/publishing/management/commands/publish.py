import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError, OutputWrapper
from django.db.models import Max

from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.basis import last_state
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.releases.publishing.reconcile import queue_unknown_tokens
from enforcement.model.documents import MAX_EPOCH
from enforcement.store.client import STORE_ERRORS

MOST_REASON = 500
# How long to wait for a publisher that came first. One change takes milliseconds.
PATIENCE_SECONDS = 10.0
WIDTH = 30
REDRAWN_SECONDS = 0.1


class Bar:
    """A progress bar on a terminal, in one line that is drawn again and again."""

    def __init__(self, output: OutputWrapper) -> None:
        self.output = output
        self.began = self.drawn = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.drawn < REDRAWN_SECONDS and done < total:
            return
        self.drawn, share = now, min(done / total, 1) if total else 1
        filled, left = round(share * WIDTH), (now - self.began) * (1 / share - 1) if share else 0
        bar = "#" * filled + "-" * (WIDTH - filled)
        text = f"[{bar}] {share:4.0%}  {done:,} of {total:,} tokens, about {left:.0f} s left"
        # The escape sequence clears the rest of a longer line from before.
        self.output.write(f"\r{text}\x1b[K", ending="")
        self.output.flush()

    def clear(self) -> None:
        self.output.write("\r\x1b[K", ending="")


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
            revision = self._publish(options["all"], reason) or _publish_after_others()
        except (*STORE_ERRORS, publisher.Postponed) as exc:
            raise CommandError(f"Nothing was published, and the changes stay pending: {exc}") from exc
        self.stdout.write(f"Published revision {revision}." if revision else "Nothing was pending.")

    def _publish(self, everything: bool, reason: str) -> int | None:
        if not everything:
            return publisher.publish_pending()
        unknown = queue_unknown_tokens()
        if unknown:
            self.stdout.write(f"Deleting {unknown} tokens that are not in SQL.")
        if reason and last_state().epoch >= MAX_EPOCH:
            raise CommandError(f"--new-epoch: must not follow epoch {MAX_EPOCH}, which is the last one.")
        bar = Bar(self.stderr) if self.stderr.isatty() else None
        try:
            if reason:
                by = "publish --all --new-epoch"
                return publisher.begin_epoch(by=by, channel="command", reason=reason, progress=bar)
            return publisher.publish_all(by="publish --all", channel="command", progress=bar)
        finally:
            if bar:
                bar.clear()


def _publish_after_others() -> int | None:
    """
    Publish what another publisher has left, and return the last revision of what is pending now, or None if nothing is.

    Raises:
        CommandError: The other one is still at work.
    """
    last = OutboxEntry.objects.filter(revision=None).order_by("-pk").first()
    if last is None:
        return None
    mine, ends = OutboxEntry.objects.filter(pk__lte=last.pk), time.monotonic() + PATIENCE_SECONDS
    while mine.filter(revision=None).exists():
        if time.monotonic() > ends:
            raise CommandError("Another publisher is at work. The changes stay pending, and the worker publishes them.")
        publisher.publish_pending()  # waits a moment for the lock
    return mine.aggregate(last=Max("revision"))["last"]


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
