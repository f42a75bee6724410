from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import batched
from typing import Any

import redis
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.utils import timezone

from controlplane.core import store
from controlplane.core.text import PRINTABLE
from controlplane.core.transactions import snapshot
from controlplane.projects.actions import revoke_tokens
from controlplane.projects.models import Token
from controlplane.publishing import compile, publisher, rebuild
from controlplane.publishing.changes import Actor, change
from controlplane.publishing.models import OutboxEntry
from controlplane.publishing.reconcile import OWN_FIELDS, as_document
from enforcement.model.instants import to_us
from enforcement.store.client import STORE_ERRORS, reported

AT_ONCE = 1000
MOST_REASON = 500
DELETED, REVOKED, ENDED = "was deleted", "was revoked", "has ended"
ENDS = "ends earlier in the store"
# The kind of an outbox entry.
EVERY = "all"


class Command(BaseCommand):
    help = (
        "Say what the store has and the database has not, before a restored database is published: tokens that were "
        "revoked, suspended, deleted or issued after the backup, or got an earlier end, and changed documents. With "
        "--revoke, also revoke the tokens that were revoked or deleted or that have ended."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--revoke",
            action="store_true",
            help="revoke the tokens that were revoked or deleted or that got an end after the backup which is over",
        )
        parser.add_argument("--reason", default="", help="the reason for --revoke, which the audit keeps")

    def handle(self, *args: Any, **options: Any) -> None:
        reason = _reason_of(options)
        try:
            ended = self._compare(store.connection())
        except STORE_ERRORS as exc:
            raise CommandError(f"The store cannot be read: {reported(exc)}") from exc
        except DatabaseError as exc:
            raise CommandError(f"The database cannot be read. Restore the backup first. It says: {exc}") from exc
        if not ended:
            self.stdout.write("No token would be accepted that the store refuses.")
        elif reason:
            with change(actor=Actor("compare_store", "command"), reason=reason) as tx:
                count = revoke_tokens(tx, Token.objects.filter(pk__in=ended))
            self.stdout.write(f"Revoked {count} tokens.")
        else:
            self.stdout.write(
                f"If the database is published, {len(ended)} tokens are accepted again. To revoke them first: "
                "manage.py compare_store --revoke --reason TEXT"
            )

    def _compare(self, client: redis.Redis) -> list[str]:
        """Print the differences, and return the ids of the tokens that the store refuses and the database does not."""
        state, last = store.StoreState.read(client), publisher.last_state()
        if state.is_empty:
            raise CommandError("The store is empty, so nothing says what was changed after the backup.")
        self.stdout.write(f"The store is at {state.name}, the database at {last}.")
        now = timezone.now()
        unknown = list(rebuild.unknown_tokens(client, now))
        if unknown:
            self.stdout.write(f"{len(unknown)} tokens are only in the store, and will be refused as unknown.")
        found = client.hgetall(store.keys().documents)
        with snapshot():
            documents = compile.all_documents()
            for name in sorted((found.keys() | documents.keys()) - set(OWN_FIELDS)):
                if as_document(found.get(name)) != documents.get(name):
                    self.stdout.write(f"The document {name} differs.")
            # A backup is older than the store. Without one, a token may be missing because it is still to be published.
            pending = _pending() if state.name <= last else frozenset()
            ended = []
            for document, what in _other_tokens(client, compile.all_tokens(now), pending, to_us(now)):
                self.stdout.write(f"The token {document['name']} ({document['id']}) {what}.")
                if what in (DELETED, REVOKED, ENDED):
                    ended.append(document["id"])
        return ended


def _pending() -> frozenset[str]:
    """Return the digests of the tokens that are not published yet, with EVERY if everything is published again."""
    entries = OutboxEntry.objects.filter(revision=None, kind__in=("token", EVERY)).values_list("kind", "object_id")
    return frozenset(EVERY if kind == EVERY else digest for kind, digest in entries)


def _other_tokens(
    client: redis.Redis, tokens: Iterator[tuple[str, compile.Document]], pending: frozenset[str], now_us: int
) -> Iterator[tuple[compile.Document, str]]:
    """Yield the tokens that the store refuses and the database does not, or will refuse earlier, and why."""
    keys = store.keys()
    for batch in batched(tokens, AT_ONCE):
        with client.pipeline(transaction=False) as pipe:
            for digest, _ in batch:
                pipe.get(keys.token(digest))
            texts = pipe.execute()
        for (digest, document), text in zip(batch, texts, strict=True):
            if document["revoked"]:
                continue
            what = _difference(as_document(text), document, now_us)
            if what in (DELETED, ENDED, ENDS) and not pending.isdisjoint((digest, EVERY)):
                what = "is not published yet"
            if what:
                yield document, what


def _difference(present: Any, document: compile.Document, now_us: int) -> str:
    """Return why the store refuses a token that the database accepts, or an empty string."""
    if not isinstance(present, dict):
        return DELETED
    if present.get("revoked"):
        return REVOKED
    end, here = present.get("expires_at_us"), document["expires_at_us"]
    if end is not None and (here is None or here > max(end, now_us)):
        return ENDED if end <= now_us else ENDS
    return "was suspended" if present.get("suspended") and not document.get("suspended") else ""


def _reason_of(options: dict[str, Any]) -> str:
    """Return the reason of a revocation, or an empty string without one. Raises CommandError."""
    reason: str = options["reason"].strip()
    if not options["revoke"]:
        if reason:
            raise CommandError("--reason: is only used with --revoke.")
        return ""
    if not 1 <= len(reason) <= MOST_REASON:
        raise CommandError(f"--reason: must have 1 to {MOST_REASON} characters, got {len(reason)}.")
    try:
        PRINTABLE(reason)
    except ValidationError as exc:
        raise CommandError(f"--reason: {' '.join(exc.messages)}") from exc
    return reason
