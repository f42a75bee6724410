"""Strict fields, which accept only a value of their own JSON type and never convert, trim or round it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from django.db.models import Model, QuerySet
from django.utils.dateparse import parse_datetime
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from controlplane.api.requests import MAX_REASON
from controlplane.core.text import PRINTABLE
from controlplane.policies.models import Limit
from enforcement.model.sizes import MAX_NUMBER

# Instants are published in microseconds, and enforcers read integers up to 2**53.
LATEST = datetime(2255, 1, 1, tzinfo=UTC)


class StringField(serializers.CharField):
    default_error_messages = {"invalid": "Must be a string."}

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"trim_whitespace": False, **options})

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        if not self.allow_blank and not data.strip():
            self.fail("blank")
        return super().to_internal_value(data)


class ReasonField(StringField):
    """The reason of a change, in the body of a request."""

    def __init__(self, **options: Any) -> None:
        rules = {"max_length": MAX_REASON, "validators": [PRINTABLE], "help_text": "The reason, which the audit keeps."}
        super().__init__(**{**rules, **options})


class StrictIntegerField(serializers.IntegerField):
    default_error_messages = {
        "invalid": "Must be an integer.",
        "fraction": "Must be an integer, written without a decimal point.",
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"min_value": 0, "max_value": MAX_NUMBER, **options})

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, float):
            self.fail("fraction")
        if type(data) is not int:
            self.fail("invalid")
        return data


class StrictBooleanField(serializers.BooleanField):
    default_error_messages = {"invalid": "Must be true or false."}

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid")
        return data


class InstantField(serializers.DateTimeField):
    """An instant as RFC 3339 writes it. A client sends it with an offset and receives it in UTC."""

    default_error_messages = {
        "invalid": "Must be an RFC 3339 time with an offset, such as 2026-12-01T12:00:00Z.",
        "range": "Must be between the years 1970 and 2255.",
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"default_timezone": UTC, **options})

    def to_internal_value(self, value: Any) -> datetime:
        instant = _instant(value)
        if instant is None or instant.tzinfo is None:
            self.fail("invalid")
        if not 1970 < instant.year < LATEST.year:
            self.fail("range")
        return instant.astimezone(UTC)


def _instant(value: Any) -> datetime | None:
    try:
        return parse_datetime(value) if isinstance(value, str) else None
    except ValueError:
        return None


@extend_schema_field({"type": "string"})
class ReferenceField(serializers.Field):
    """
    A reference to a row that the key may see, by the row's slug or id.

    Args:
        rows: The name of the method of Access that returns the rows.
        by: The column that names a row.
    """

    default_error_messages = {"invalid": "Must be a string.", "does_not_exist": "There is no {kind} {value!r}."}

    def __init__(self, rows: str, by: str = "slug", **options: Any) -> None:
        super().__init__(**options)
        self.rows, self.by = rows, by

    def to_internal_value(self, data: Any) -> Model:
        if not isinstance(data, str):
            self.fail("invalid")
        rows: Callable[[], QuerySet[Any]] = getattr(self.context["access"], self.rows)
        found = self.find(rows(), data)
        if found is None:
            self.fail("does_not_exist", kind=rows().model._meta.verbose_name, value=data)
        return found

    def find(self, rows: QuerySet[Any], value: str) -> Model | None:
        """Return the row that *value* names, or None."""
        return rows.filter(**{self.by: value}).first()

    def to_representation(self, value: Model) -> str:
        return getattr(value, self.by)


@extend_schema_field({"type": "string", "example": "free/per-minute"})
class LimitReferenceField(ReferenceField):
    """A reference to a limit, written as "policy-slug/limit-name". The name may contain slashes."""

    def __init__(self, **options: Any) -> None:
        super().__init__("limits", **options)

    def find(self, rows: QuerySet[Limit], value: str) -> Limit | None:
        policy, _, name = value.partition("/")
        return rows.select_related("policy").filter(policy__slug=policy, name=name).first()

    def to_representation(self, value: Limit) -> str:
        return str(value)
