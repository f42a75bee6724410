"""The query of every change: whether it is only tried, and for what its response waits."""

from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

from controlplane.web.restkit.fields import QueryBooleanField
from controlplane.web.restkit.serializers import QuerySerializer
from controlplane.web.restkit.writes.waiting import ACKNOWLEDGED, MOST_SECONDS, USUAL_SECONDS


class WriteQuery(QuerySerializer):
    """The query of every change."""

    dry_run = QueryBooleanField(
        default=False,
        help_text="With true, every rule is checked and nothing is changed. The response says what would be.",
    )
    wait = serializers.ChoiceField(
        [ACKNOWLEDGED],
        required=False,
        help_text="If given, the response comes when every live instance runs the revision with the change.",
    )
    timeout = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=MOST_SECONDS,
        help_text=f"How many seconds to wait at most. If left out, {USUAL_SECONDS}. Only with wait.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "timeout" in attrs and "wait" not in attrs:
            raise ValidationError({"timeout": [ErrorDetail("Must be given with wait only.", code="rule")]})
        return attrs
