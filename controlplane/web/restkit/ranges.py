"""Queries and pages of lists whose rows are sums by minute, hour or day."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.utils import timezone
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.response import Response

from controlplane.core.periods import KEPT, PERIODS, start_of
from controlplane.web.restkit.fields import InstantField
from controlplane.web.restkit.pagination import CursorPage
from controlplane.web.restkit.serializers import ListQuery

PROJECT = "Slug or id of a project."
# The default step of a range, chosen so that a token has at most a few hundred rows.
FINEST = (("minute", timedelta(hours=6)), ("hour", timedelta(days=14)))
# The default range of each step.
LAST = {"minute": timedelta(hours=1), "hour": timedelta(days=1), "day": timedelta(days=30)}
# No row is older: a range that begins earlier is cut.
OLDEST = max(KEPT.values()) + timedelta(days=70)


class RangeQuery(ListQuery):
    """The query of a list of sums: a range of time, and the step of its rows."""

    to = InstantField(required=False, help_text="End of the range, which is not included. If left out, now.")
    step = serializers.ChoiceField(
        PERIODS,
        required=False,
        help_text="If left out, minute for up to 6 hours, hour for up to 14 days, else day. "
        "Minutes are kept for 48 hours, hours for 90 days, days for 730.",
    )

    def get_fields(self) -> dict[str, serializers.Field]:
        beginning = InstantField(
            required=False,
            help_text="Start of the range, rounded down to a full step. "
            "If left out, an hour before the end for minutes, a day for hours, 30 days for days.",
        )
        return {**super().get_fields(), "from": beginning}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs["to"] = attrs.get("to") or timezone.now()
        attrs["step"] = attrs.get("step") or _finest(attrs)
        beginning = attrs.get("from") or attrs["to"] - LAST[attrs["step"]]
        if beginning >= attrs["to"]:
            raise ValidationError({"from": [ErrorDetail("Must be before the end of the range.", code="range")]})
        attrs["from"] = start_of(attrs["step"], max(beginning, attrs["to"] - OLDEST))
        return attrs


def _finest(attrs: dict[str, Any]) -> str:
    if "from" not in attrs:
        return "minute"
    return next((step for step, most in FINEST if attrs["to"] - attrs["from"] <= most), "day")


class RangePage(CursorPage):
    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        page = super().get_paginated_response_schema(schema)
        instant = {"type": "string", "format": "date-time"}
        step = {"type": "string", "enum": list(PERIODS)}
        page["properties"] |= {"step": step, "from": instant, "to": instant}
        return {**page, "required": [*page["required"], "step", "from", "to"]}


def page_of_range(query: Mapping[str, Any], response: Response) -> Response:
    """Return the response after adding the step and the range that *query* has led to."""
    instants = {name: InstantField().to_representation(query[name]) for name in ("from", "to")}
    response.data |= {"step": query["step"], **instants}
    return response
