"""The review of a change over REST: the change is tried, undone, and answered by what it would do."""

from collections.abc import Callable, Mapping
from typing import Any

from django.utils import timezone
from rest_framework import serializers
from rest_framework.response import Response

from controlplane.api.serializers import QuerySerializer
from controlplane.api.views import Replaced
from controlplane.policies.models import Policy
from controlplane.preview.api import PreviewSerializer, preview_data, visible_to
from controlplane.publishing.changes import Change
from controlplane.review.effects import EFFECTS
from controlplane.review.reviews import Review, review_of, review_of_reach, with_preview


class LimitChangeSerializer(serializers.Serializer):
    limit = serializers.CharField(source="name")
    effect = serializers.ChoiceField(EFFECTS)
    note = serializers.CharField(help_text="When the change holds, in words. If empty, from now on.")
    before = serializers.CharField(source="was", help_text="In words.")
    after = serializers.CharField(source="becomes", help_text="In words.")


class ReviewSerializer(serializers.Serializer):
    headline = serializers.CharField()
    changes = LimitChangeSerializer(many=True)
    tokens = serializers.IntegerField(help_text="Live tokens whose requests it may deny.")
    projects = serializers.ListField(child=serializers.CharField(), help_text="Slugs of the projects concerned.")
    overrides = serializers.IntegerField(help_text="Overrides that stay.")
    needs_reason = serializers.BooleanField(help_text="Whether requests may be denied that passed before.")
    denied_now = serializers.IntegerField(help_text="Requests that its limits denied in the same time.")
    preview = PreviewSerializer()


class DryRunQuery(QuerySerializer):
    # The text of a query has no boolean.
    dry_run = serializers.ChoiceField(
        ["true", "false"],
        default="false",
        help_text="With true, nothing is changed. The response is the review of the change, with its preview.",
    )


class DryRun(Exception):
    """Raised inside the transaction of a change that is only tried, so that it is undone."""

    def __init__(self, policy: Policy, before: dict[str, Any]) -> None:
        super().__init__(policy.slug)
        self.policy, self.before, self.after = policy, before, policy.as_record()


class Tried(Exception):
    """
    Raised inside the transaction of a change that is only tried, so that it is undone.

    Args:
        review: What the change would do, without its preview.
        after: The record of the policy that counts after the change.
    """

    def __init__(self, review: Review, after: Mapping[str, Any] | None = None) -> None:
        super().__init__(review.headline)
        self.made, self.after = review, after or {"limits": []}


class Trying:
    """A mixin for a view whose changes are undone with ``dry_run=true``, after all rules were checked."""

    @property
    def is_dry_run(self) -> bool:
        return self.query.get("dry_run") == "true"

    def tried(self, act: Callable[[Change], Review]) -> Response:
        """Return the review of what *act* does in a change that is undone."""
        try:
            with self.change() as tx:
                raise Tried(act(tx))
        except Tried as tried:
            seen = visible_to(self.access)
            review = with_preview(tried.made, tried.after, timezone.now(), projects=seen, others=False)
            return Response(ReviewSerializer(review_data(review)).data)


class ReplacedOrTried(Replaced):
    """Changes that are undone with ``dry_run=true``, after all rules were checked."""

    def _update(self, *, partial: bool) -> Response:
        if self.query["dry_run"] == "false":
            return super()._update(partial=partial)
        try:
            with self.change() as tx:
                policy = self.for_writing()
                before = policy.as_record()
                self.save_changed(tx, self.read_body(policy, partial=partial), before)
                raise DryRun(self.as_written(policy), before)
        except DryRun as tried:
            seen = visible_to(self.access)
            review = review_of(tried.policy, tried.before, tried.after, seen)
            review = with_preview(review, tried.after, timezone.now(), projects=seen, others=False)
            return Response(ReviewSerializer(review_data(review)).data)


class ChoiceTried(Exception):
    """Raised inside the transaction of a choice of the global policy that is only tried."""


def review_of_choice(chosen: Policy | None, former: Policy | None) -> dict[str, Any]:
    """Return the review of making one policy the global one in place of another, as a response sends it."""
    after: dict[str, Any] = {"limits": []}
    if chosen == former:
        review = Review(chosen or Policy(), [], is_global=True, title="Nothing changes")
    elif chosen is not None:
        chosen.is_global, after = True, chosen.as_record()
        review = review_of_reach(chosen, former)
    else:
        assert former is not None
        former.is_global = False
        review = review_of_reach(former, None)
    return ReviewSerializer(review_data(with_preview(review, after, timezone.now(), others=False))).data


def review_data(review: Review) -> dict[str, Any]:
    """Return a review with its preview as the values that its serializer writes."""
    assert review.preview is not None
    names = ("headline", "changes", "tokens", "projects", "overrides", "needs_reason", "denied_now")
    told = {name: getattr(review, name) for name in names}
    return {**told, "preview": preview_data(review.preview, shadow=not review.of_whom)}
