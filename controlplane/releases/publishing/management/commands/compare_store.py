from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import batched
from typing import Any

import redis
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, OpenChange, change
from controlplane.core import store
from controlplane.core.text import PRINTABLE
from controlplane.core.transactions import snapshot
from controlplane.objects.emergency.restored import Missing, missing_in, missing_of
from controlplane.objects.projects.actions import revoke_tokens
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import compile, rebuild
from controlplane.releases.publishing.basis import last_state
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.releases.publishing.reconcile import OWN_FIELDS, as_document, documents_of
from enforcement.model.instants import from_us, to_us
from enforcement.store.client import STORE_ERRORS, reported

AT_ONCE = 1000
MOST_REASON = 500
DELETED, REVOKED, ENDED = "was deleted", "was revoked", "has ended"
ENDS, SUSPENDED, NOT_PUBLISHED = "ends earlier in the store", "was suspended", "is not published yet"
AGAIN = "manage.py compare_store --reason TEXT"
# The kind of an outbox entry.
EVERY = "all"


class Command(BaseCommand):
    help = (
        "Say what the store has and the database has not, before a restored database is published: tokens that were "
        "revoked, suspended, deleted or issued after the backup, or got an earlier end, suspended projects and values, "
        "and changed documents. With --revoke and --suspend, do the same to them in the database."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--revoke",
            action="store_true",
            help="revoke the tokens that were revoked or deleted or that got an end after the backup which is over, "
            "and give the others the earlier end that they have in the store",
        )
        parser.add_argument(
            "--suspend",
            action="store_true",
            help="suspend the tokens, projects and values that were suspended after the backup, with the same end",
        )
        parser.add_argument("--reason", default="", help="the reason for both, which the audit keeps")

    def handle(self, *args: Any, **options: Any) -> None:
        reason = _reason_of(options)
        try:
            found = self._compare(store.connection())
        except STORE_ERRORS as exc:
            raise CommandError(f"The store cannot be read: {reported(exc)}") from exc
        except DatabaseError as exc:
            raise CommandError(f"The database cannot be read. Restore the backup first. It says: {exc}") from exc
        try:
            lines = _repeated(found, reason, revoke=options["revoke"], suspend=options["suspend"])
        except ValidationError as exc:
            raise CommandError(f"Nothing was changed: {' '.join(exc.messages)}") from exc
        for line in lines or ["No token would be accepted that the store refuses."]:
            self.stdout.write(line)

    def _compare(self, client: redis.Redis) -> Found:
        """Print the differences, and return what the store refuses and the database does not."""
        state, last = store.StoreState.read(client), last_state()
        if state.is_empty:
            raise CommandError("The store is empty, so nothing says what was changed after the backup.")
        self.stdout.write(f"The store is at {state.name}, the database at {last}.")
        now, result = timezone.now(), Found()
        unknown = list(rebuild.unknown_tokens(client, now))
        if unknown:
            self.stdout.write(f"{len(unknown)} tokens are only in the store, and will be refused as unknown.")
        there = documents_of(client)
        with snapshot():
            documents = compile.all_documents()
            for name in sorted((there.keys() | documents.keys()) - set(OWN_FIELDS)):
                if there.get(name) != documents.get(name):
                    self.stdout.write(f"The document {name} differs.")
            # A backup is older than the store. Without one, a token may be missing because it is still to be published.
            pending = _pending() if state.name <= last else frozenset()
            if pending.isdisjoint(("emergency", EVERY)):
                result.suspended += missing_in(there, now)
            for document, what in _other_tokens(client, compile.all_tokens(now), pending, now, result):
                self.stdout.write(f"The token {document['name']} ({document['id']}) {what}.")
        for one in result.suspended:
            if not isinstance(one.subject, Token):
                self.stdout.write(f"{one} is suspended in the store.")
        return result


@dataclass(slots=True)
class Found:
    """
    The differences: objects that the store refuses and the database accepts.

    Attributes:
        ended: The ids of the tokens that are refused for ever.
        ends: The ids of the tokens that end earlier in the store, with that end.
        suspended: The suspensions that are missing.
    """

    ended: list[str] = field(default_factory=list)
    ends: dict[str, datetime] = field(default_factory=dict)
    suspended: list[Missing] = field(default_factory=list)


def _repeated(found: Found, reason: str, *, revoke: bool, suspend: bool) -> list[str]:
    """Do to the database what was done to the store, and return a line for what was done and for what is left."""
    done: list[str] = []
    if reason:
        with change(actor=Actor("compare_store", "command"), reason=reason) as tx:
            done += _end(tx, found) if revoke else []
            done += _suspend(tx, found) if suspend else []
    ends = len(found.ended) + len(found.ends)
    if ends and not revoke:
        done.append(
            f"If the database is published, {ends} tokens are accepted again. To end them first: {AGAIN} --revoke"
        )
    if (number := len(found.suspended)) and not suspend:
        done.append(f"If the database is published, {number} suspensions are lifted. To keep them: {AGAIN} --suspend")
    return done


def _end(tx: OpenChange, found: Found) -> Iterator[str]:
    if found.ended:
        yield f"Revoked {revoke_tokens(tx, Token.objects.filter(pk__in=found.ended))} tokens."
    for pk, end in found.ends.items():
        token = Token.objects.get(pk=pk)
        before, token.expires_at = token.as_record(), end
        token.save(update_fields=["expires_at"])
        tx.updated(token, before)
    if found.ends:
        yield f"Gave {len(found.ends)} tokens the end that they have in the store."


def _suspend(tx: OpenChange, found: Found) -> Iterator[str]:
    for one in found.suspended:
        one.suspend(tx)
    if found.suspended:
        yield f"Suspended {len(found.suspended)} tokens, projects and values again."


def _pending() -> frozenset[str]:
    """Return the digests of the tokens that are not published yet, and the kinds of what else is not."""
    entries = OutboxEntry.objects.filter(revision=None).values_list("kind", "object_id")
    return frozenset(digest if kind == "token" else kind for kind, digest in entries)


def _other_tokens(
    client: redis.Redis,
    tokens: Iterator[tuple[str, compile.Document]],
    pending: frozenset[str],
    now: datetime,
    found: Found,
) -> Iterator[tuple[compile.Document, str]]:
    """
    Yield the tokens that the store refuses and the database does not, or will refuse earlier, and why.

    They are added to *found* too, but for those that are not published yet, about which the database is right.
    """
    keys = store.keys()
    for batch in batched(tokens, AT_ONCE):
        with client.pipeline(transaction=False) as pipe:
            for digest, _ in batch:
                pipe.get(keys.token(digest))
            texts = pipe.execute()
        for (digest, document), text in zip(batch, texts, strict=True):
            if document["revoked"]:
                continue
            present = as_document(text)
            what = _difference(present, document, to_us(now))
            suspended = missing_of(document["id"], present, now) if isinstance(present, dict) else None
            if what != REVOKED and not pending.isdisjoint((digest, EVERY)):
                what, suspended = what and NOT_PUBLISHED, None
            if what in (DELETED, REVOKED, ENDED):
                found.ended.append(document["id"])
            elif suspended is not None:
                found.suspended.append(suspended)
            if what == ENDS and isinstance(present, dict):
                found.ends[document["id"]] = from_us(present["expires_at_us"])
            if what:
                yield document, what
            if suspended is not None and what not in (DELETED, REVOKED, ENDED):
                yield document, SUSPENDED


def _difference(present: object, document: compile.Document, now_us: int) -> str:
    """Return why the store refuses a token that the database accepts, or an empty string."""
    if not isinstance(present, dict):
        return DELETED
    if present.get("revoked"):
        return REVOKED
    end, here = present.get("expires_at_us"), document["expires_at_us"]
    if end is not None and (here is None or here > max(end, now_us)):
        return ENDED if end <= now_us else ENDS
    return ""


def _reason_of(options: dict[str, Any]) -> str:
    """Return the reason of what is done, or an empty string if nothing is. Raises CommandError."""
    reason: str = options["reason"].strip()
    if not options["revoke"] and not options["suspend"]:
        if reason:
            raise CommandError("--reason: is only used with --revoke or --suspend.")
        return ""
    if not 1 <= len(reason) <= MOST_REASON:
        raise CommandError(f"--reason: must have 1 to {MOST_REASON} characters, got {len(reason)}.")
    try:
        PRINTABLE(reason)
    except ValidationError as exc:
        raise CommandError(f"--reason: {' '.join(exc.messages)}") from exc
    return reason
