"""Changes that are only tried: made in a transaction that is undone, and answered by what they would have done."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import batched
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import OpenChange
from controlplane.changes.words.change import NOTHING, Change, ObjectChange, State
from controlplane.changes.words.entries import change_of
from controlplane.objects.policies.models import Policy
from controlplane.web.restkit.authentication import Access

# Objects whose differences a response lists. It counts all of them.
MOST_LISTED = 100
# Digests in one query.
AT_ONCE = 500
# Changes of these concern every token.
OF_ALL = ("global", "emergency", "prices", "all")
# A key that may not read the audit learns nothing of other keys and of people.
OF_OPERATORS = ("managementkey", "membership", "user")

# Objects whose members have names that clients choose, so that a label may have any name.
NAMED_BY_CLIENTS = ("labels", "attributes")

_ANY: dict[str, Any] = {"description": "Any JSON value."}


@extend_schema_field(_ANY)
class ValueField(serializers.JSONField):
    """A value of any type."""


class ChangedFieldSerializer(serializers.Serializer):
    field = serializers.CharField(help_text="For example name, or limits.per-minute.quota.")
    before = ValueField(help_text="Null if there was none.")
    after = ValueField(help_text="Null if there would be none.")


class ChangedObjectSerializer(serializers.Serializer):
    action = serializers.CharField(help_text="As the audit would name it, for example policy.update.")
    type = serializers.CharField()
    id = serializers.CharField(help_text="That of a new object is not kept.")

    def get_fields(self) -> dict[str, serializers.Field]:
        return {
            **super().get_fields(),
            "label": serializers.CharField(),
            "changes": ChangedFieldSerializer(many=True),
        }


@extend_schema_field({"type": ["object", "array", "null"], "items": {}, "additionalProperties": True})
class BodyField(serializers.JSONField):
    """The body of a response."""


@extend_schema_field({"type": "boolean", "const": True})
class AlwaysTrueField(serializers.BooleanField):
    """A field by which generated clients tell a response from the others of its operation."""


class TrialSerializer(serializers.Serializer):
    dry_run = AlwaysTrueField(help_text="Always true. No other response has this field.")
    status = serializers.IntegerField(min_value=200, max_value=299, help_text="The status without dry_run.")
    result = BodyField(help_text="The body without dry_run, without secrets. Null if it has none.")
    tokens = serializers.IntegerField(help_text="Live tokens that are concerned.")
    changed = serializers.IntegerField(help_text="Objects that would be changed. With 0, the request changes nothing.")
    diff = ChangedObjectSerializer(many=True, help_text=f"The first {MOST_LISTED} of these objects.")


@dataclass(slots=True)
class Trial:
    """
    The result that a change would have had.

    Attributes:
        status: The status of the response that the change would have had. 0 until it was made.
        result: The body of that response, without secrets.
        change: What would have been recorded of the first objects, as far as the key may see them.
        changed: The number of these objects, with those that are not among the first.
        touched: What would have been published, by kind and id.
    """

    status: int = 0
    result: Any = None
    change: Change = NOTHING
    changed: int = 0
    touched: frozenset[tuple[str, str]] = frozenset()

    def note(self, response: Response, tx: OpenChange | None, access: Access) -> None:
        """Keep what the open change *tx* has done, and the response to it."""
        self.status, self.result = response.status_code, without_secrets(as_json(response))
        if tx is not None:
            entries = _visible(AuditEntry.objects.filter(change=tx.id).order_by("pk"), access)
            self.change, self.changed = change_of(entries[:MOST_LISTED], State.TRIED), entries.count()
            self.touched = tx.touched

    def as_data(self, access: Access) -> dict[str, Any]:
        """Return the body of the response to a dry run, as values that :class:`TrialSerializer` describes."""
        return {
            "dry_run": True,
            "status": self.status,
            "result": self.result,
            "tokens": _tokens_of(self.touched, access),
            "changed": self.changed,
            "diff": [_difference(one) for one in self.change.objects],
        }


@contextmanager
def trial() -> Iterator[Trial]:
    """Run the block in a transaction that is undone, with what it would do after the commit, and yield a new Trial."""
    with transaction.atomic():
        yield Trial()
        transaction.set_rollback(True)


def as_json(response: Response) -> Any:
    """Return the body of a response as the values that a client reads, or None if it has none."""
    return json.loads(JSONRenderer().render(response.data)) if response.data is not None else None


def without_secrets(value: Any) -> Any:
    """Return a copy of JSON in which each member named "secret" is null. Clients name the members of some objects."""
    if isinstance(value, dict):
        named = {name: one if name in NAMED_BY_CLIENTS else without_secrets(one) for name, one in value.items()}
        return {**named, "secret": None} if "secret" in named else named
    return [without_secrets(one) for one in value] if isinstance(value, list) else value


def _visible(entries: QuerySet[AuditEntry], access: Access) -> QuerySet[AuditEntry]:
    if not access.all_projects:
        entries = entries.filter(project__in=access.project_ids)
    return entries if access.key.allows("audit:read") else entries.exclude(object_type__in=OF_OPERATORS)


def _difference(one: ObjectChange) -> dict[str, Any]:
    changes = [{"field": field.name, "before": field.before, "after": field.after} for field in one.differences]
    return {"action": one.deed, "type": one.kind, "id": one.pk, "label": one.label, "changes": changes}


def _tokens_of(touched: Collection[tuple[str, str]], access: Access) -> int:
    """Return how many live tokens that the key may see are concerned by a change, as they are without it."""
    live = access.tokens().live(timezone.now())
    policies, projects, digests = (
        [pk for kind, pk in touched if kind == wanted] for wanted in ("policy", "project", "token")
    )
    if any(kind in OF_ALL for kind, _ in touched) or Policy.objects.filter(pk__in=policies, is_global=True).exists():
        return live.count()
    under = Q(policy__in=policies) | Q(project__policy__in=policies) | Q(project__in=projects)
    count = live.filter(under).count() if policies or projects else 0
    return count + sum(live.filter(digest__in=some).exclude(under).count() for some in batched(digests, AT_ONCE))
