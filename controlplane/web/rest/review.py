"""The review of a change over REST, in the response to a dry run."""

from dataclasses import replace
from typing import Any

from django.utils import timezone
from rest_framework import serializers

from controlplane.changes.words.change import ObjectChange
from controlplane.changes.words.effects import EFFECTS
from controlplane.objects.policies.models import Policy
from controlplane.releases.review.attaching import attachment_review
from controlplane.releases.review.reviews import Review, review_of, review_of_reach, with_preview
from controlplane.web.rest.preview import PreviewSerializer, preview_data, visible_to
from controlplane.web.restkit.authentication import Access
from controlplane.web.restkit.views import ApiView
from controlplane.web.restkit.writes.trials import Trial, TrialSerializer


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


class ReviewedTrialSerializer(ReviewSerializer, TrialSerializer):
    pass


class Reviewed(ApiView):
    """A mixin for views whose dry runs are answered by a review with its preview, too."""

    tried: Any = None

    def as_written(self, obj: Any) -> Any:
        """Return the row, and keep it for the review."""
        self.tried = super().as_written(obj)
        return self.tried


class ReviewedPolicy(Reviewed):
    """The same for policies."""

    def as_written(self, obj: Policy) -> Policy:
        written = super().as_written(obj)
        if self.query["dry_run"]:
            self.becomes = ObjectChange.of(written, None)
        return written

    def review(self, tried: Trial) -> dict[str, Any]:
        if self.tried is None:  # a deletion, which is refused for a policy that is used
            return {}
        present, seen = Policy.objects.filter(pk=self.tried.pk).first(), visible_to(self.access)
        one = replace(self.becomes, before=present.as_record()) if present else self.becomes
        return previewed(review_of(self.tried, one, seen), self.access)


class ReviewedHolder(Reviewed):
    """The same for tokens and projects, which may get another policy."""

    def review(self, tried: Trial) -> dict[str, Any]:
        present = type(self.tried).objects.filter(pk=self.tried.pk).first() if self.tried else None
        if present is None or present.policy_id == self.tried.policy_id:
            return {}
        return previewed(attachment_review(present, present.policy, self.tried.policy), self.access)


def previewed(review: Review, access: Access) -> dict[str, Any]:
    """Return a review, after adding its preview, as the members of a response that describe it."""
    return of_review(with_preview(review, timezone.now(), projects=visible_to(access), others=False))


def review_of_choice(chosen: Policy | None, former: Policy | None) -> dict[str, Any]:
    """Return the review of making one policy the global one in place of another, as members of a response."""
    if chosen == former:
        review = Review(chosen or Policy(), [], is_global=True, title="Nothing changes")
    elif chosen is not None:
        chosen.is_global = True
        review = review_of_reach(chosen, former)
    else:
        assert former is not None
        former.is_global = False
        review = review_of_reach(former, None)
    return of_review(with_preview(review, timezone.now(), others=False))


def of_review(review: Review) -> dict[str, Any]:
    """Return a review with its preview as the members of a response that describe it."""
    assert review.preview is not None
    names = ("headline", "changes", "tokens", "projects", "overrides", "needs_reason", "denied_now")
    told = {name: getattr(review, name) for name in names}
    found = {**told, "preview": preview_data(review.preview, shadow=review.shadow_tells)}
    return ReviewSerializer(found).data
