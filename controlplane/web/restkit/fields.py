"""Strict fields, which accept only a value of their own JSON type and never convert, trim or round it."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import batched
from typing import Any

from django.db.models import Model, Q, QuerySet
from django.utils.dateparse import parse_datetime
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

from controlplane.core.instants import LATEST
from controlplane.core.text import PRINTABLE
from controlplane.objects.projects.models import TokenQuerySet
from controlplane.web.restkit.requests import MAX_REASON
from enforcement.model.matching import LABEL_PREFIX, check_labels
from enforcement.model.sizes import MAX_LABEL_LENGTH, MAX_LABEL_NAME_LENGTH, MAX_LABELS, MAX_NUMBER

EVERY_LIMIT = "*"
# Rows that one statement looks up.
AT_ONCE = 500
# Options of the field of a project or policy. A model's field that no form edits is read-only without them.
MANAGED_BY: dict[str, Any] = {
    "read_only": False,
    "required": False,
    "allow_blank": True,
    "max_length": 200,
    "validators": [PRINTABLE],
}


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


@extend_schema_field({"type": "string", "enum": ["true", "false"], "minLength": 1})
class QueryBooleanField(serializers.Field):
    """A boolean in a query, whose text has only "true" and "false"."""

    choices = ("true", "false")
    default_error_messages = {"invalid_choice": serializers.ChoiceField.default_error_messages["invalid_choice"]}

    def to_internal_value(self, data: Any) -> bool:
        if data not in self.choices:
            self.fail("invalid_choice", input=data)
        return data == "true"

    def to_representation(self, value: bool) -> str:
        return "true" if value else "false"


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


class PlainField(serializers.Field):
    """A JSON value as it is. The model knows the rules."""

    def to_internal_value(self, data: object) -> object:
        return data

    def to_representation(self, value: object) -> object:
        return value


@extend_schema_field({"type": "string"})
class ReferenceField(serializers.Field):
    """
    A reference to a row that the key may see, by the row's slug or id.

    Args:
        rows: The name of the method of Access that returns the rows.
        by: The column that names a row.
        related: The foreign keys of a row to read with it.
    """

    default_error_messages = {"invalid": "Must be a string.", "does_not_exist": "There is no {kind} {value!r}."}

    def __init__(self, rows: str, by: str = "slug", related: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__(**options)
        self.rows, self.by, self.related = rows, by, related

    def to_internal_value(self, data: Any) -> Model | str:
        if not isinstance(data, str):
            self.fail("invalid")
        known, key = self.context.get("known", {}), (self.rows, self.by, data)
        result = known[key] if key in known else self.find([data]).get(data)
        if result is None:
            self.fail("does_not_exist", kind=self.visible().model._meta.verbose_name, value=data)
        return result

    def visible(self) -> QuerySet[Any]:
        """Return a query of the rows that the key may see, with the rows that every use of them reads."""
        rows: Callable[[], QuerySet[Any]] = getattr(self.context["access"], self.rows)
        return rows().select_related(*self.related) if self.related else rows()

    def look_up(self, values: Iterable[str]) -> None:
        """Find the rows that the items of a batch name, with few statements, before each item is read."""
        for some in batched(set(values), AT_ONCE):
            found = self.find(some)
            self.context["known"].update({(self.rows, self.by, value): found.get(value) for value in some})

    def find(self, values: Sequence[str]) -> dict[str, Model]:
        """Return the rows that *values* name, by name, without those that are not there."""
        return {getattr(row, self.by): row for row in self.visible().filter(**{f"{self.by}__in": values})}

    def to_representation(self, value: Model) -> str:
        return getattr(value, self.by)


@extend_schema_field({"type": "string", "example": "free/per-minute"})
class LimitReferenceField(ReferenceField):
    """A reference to a limit, written as "policy-slug/limit-name". The name may contain slashes."""

    def __init__(self, **options: Any) -> None:
        super().__init__("limits", related=("policy",), **options)

    def find(self, values: Sequence[str]) -> dict[str, Model]:
        slugs, names = {value.partition("/")[0] for value in values}, {value.partition("/")[2] for value in values}
        # Other pairs of these slugs and names are there too. Their rows are not read.
        rows = self.visible().order_by().filter(policy__slug__in=slugs, name__in=names)
        pairs = rows.values_list("pk", "policy__slug", "name")
        wanted = [pk for pk, slug, name in pairs if f"{slug}/{name}" in values]
        return {str(limit): limit for some in batched(wanted, AT_ONCE) for limit in self.visible().filter(pk__in=some)}

    def to_representation(self, value: Model) -> str:
        return str(value)


class ProjectField(ReferenceField):
    """A project by its slug or id, as its id. For a key of all projects that may be the id of a deleted one."""

    def __init__(self, **options: Any) -> None:
        super().__init__("projects", required=False, **options)

    def to_internal_value(self, data: str) -> str:
        access = self.context["access"]
        found = access.projects().filter(Q(slug=data) | Q(pk=data)).first()
        if found is None and not (access.all_projects and data.startswith("proj_")):
            self.fail("does_not_exist", kind="project", value=data)
        return found.pk if found else data


@extend_schema_field({"type": "string", "example": "free/per-minute"})
class PastLimitField(serializers.Field):
    """A limit as policy-slug/limit-name. The id of a policy, deleted or not, works in place of its slug."""

    def to_internal_value(self, data: str) -> dict[str, str]:
        head, _, name = data.partition("/")
        policy = self.context["access"].policies().filter(Q(slug=head) | Q(pk=head)).first()
        if not name or (policy is None and not head.startswith("pol_")):
            raise ValidationError([ErrorDetail(f"There is no limit {data!r}.", code="does_not_exist")])
        return {"policy_id": policy.pk if policy else head, "limit_name": name}


class UsageLimitField(PastLimitField):
    """A limit, or "*" for each of them."""

    def to_internal_value(self, data: str) -> dict[str, str]:
        return {} if data == EVERY_LIMIT else super().to_internal_value(data)


_LABEL_NAMES = {"pattern": "^[a-z][a-z0-9._-]*$", "maxLength": MAX_LABEL_NAME_LENGTH}
_LABEL_VALUE = {"type": "string", "minLength": 1, "maxLength": MAX_LABEL_LENGTH}
_LABELS = {"type": "object", "maxProperties": MAX_LABELS, "additionalProperties": _LABEL_VALUE}


@extend_schema_field({**_LABELS, "propertyNames": _LABEL_NAMES, "example": {"team": "red"}})
class LabelsField(serializers.JSONField):
    """The labels of a token by name. The model knows the rules."""


@extend_schema_field({**_LABELS, "propertyNames": {"pattern": r"^label\.[a-z][a-z0-9._-]{0,57}$"}})
class LabelQueryField(serializers.Field):
    """
    Labels of tokens, each as a parameter of a query such as label.team=red.

    By the rules of OpenAPI for objects in a query, the names of the properties are those of the parameters.
    """

    def __init__(self) -> None:
        text = "Labels that the token must have, each as a parameter such as label.team=red."
        super().__init__(required=False, help_text=text)

    def to_internal_value(self, data: Any) -> dict[str, str]:
        """Return the values by name. The errors of ValidationError have the names of the parameters."""
        if isinstance(data, str):
            message = "Must be given as a parameter for each label, such as label.team=red."
            raise ValidationError([ErrorDetail(message, code="invalid_label")])
        labels = {name.removeprefix(LABEL_PREFIX): value for name, value in data.items()}
        errors = {LABEL_PREFIX + name: found for name in labels if (found := _label_errors({name: labels[name]}))}
        if errors:
            raise ValidationError(errors)
        return labels


@extend_schema_field({"type": "string", "minLength": 1, **_LABEL_NAMES})
class LabelNameField(StringField):
    """The name of a label, such as team."""

    def to_internal_value(self, data: Any) -> str:
        name = super().to_internal_value(data)
        if errors := _label_errors({name: "x"}):
            raise ValidationError(errors)
        return name


def _label_errors(label: dict[str, str]) -> list[ErrorDetail]:
    try:
        check_labels(label)
    except ValueError as exc:
        return [ErrorDetail(f"Must be a label that a token can have: {exc}.", code="invalid_label")]
    return []


def with_labels(tokens: TokenQuerySet, query: dict[str, Any]) -> TokenQuerySet:
    """Return the tokens that have all labels in a query, if it has any."""
    for name, value in query.get("labels", {}).items():
        tokens = tokens.with_label(name, value)
    return tokens
