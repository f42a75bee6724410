"""The review of an override between its form, or the request to delete it, and its new state."""

from functools import partial
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from controlplane.core.tables.digests import digest_of
from controlplane.objects.overrides.models import Override
from controlplane.releases.review.overriding import deletion_review, override_review
from controlplane.releases.review.reviews import Review
from controlplane.web.kit.site import change_url, list_url
from controlplane.web.kit.state import reposted
from controlplane.web.pages.review.views import ReviewedForm, settle, without_decision

DELETING = {"post": "yes"}
# Overrides of which a review finds out what becomes of each.
MOST_READ = 500


class ReviewedOverrides(ReviewedForm):
    """A mixin for the page of overrides, each of which is saved or deleted only after its review."""

    def save_model(self, request: HttpRequest, obj: Override, form: Any, change: bool) -> None:
        former = _read(obj.pk) if change else None
        super().save_model(request, obj, form, change)
        settle(request, override_review(former, obj, timezone.now()), obj.reason, own_reason=obj.reason)

    def settle_raise(self, request: HttpRequest, former: Override | None, override: Override) -> None:
        """
        Do nothing if a saved override only lets more pass than before, because its page has said how much.

        Raises:
            ReviewNeeded: It takes something away, and nobody has confirmed that yet.
        """
        review = override_review(former, override, timezone.now())
        settle(request, review, override.reason, light=False, own_reason=override.reason)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        view = partial(super().delete_view, request, object_id, extra_context)
        return self.reviewed(request, partial(self._deleted, request, object_id, view))

    def _deleted(self, request: HttpRequest, object_id: str, view: Any) -> HttpResponse:
        if request.method != "POST":
            override = self.get_object(request, self.key_of(object_id))
            if override is not None and self.has_delete_permission(request, override):
                self._settle_deletion(request, deletion_review([override], timezone.now()), change_url(override))
        return view()

    def delete_model(self, request: HttpRequest, obj: Override) -> None:
        self._settle_deletion(request, deletion_review([obj], timezone.now()), change_url(obj))
        super().delete_model(request, obj)

    def settle_selected(self, request: HttpRequest, overrides: QuerySet[Override], *, is_job: bool) -> None:
        """
        Do nothing if the deletion of the selected overrides is confirmed.

        Args:
            is_job: Whether they are so many that a job deletes them.
        Raises:
            ReviewNeeded: Nobody has confirmed it yet.
        """
        if "post" not in request.POST:  # the selection has changed since it was reviewed
            reposted(request, without_decision(request.POST))
        count = overrides.count()
        rows = overrides.order_by("pk").select_related("limit__policy", "token__project", "project")[:MOST_READ]
        if count:
            review = deletion_review(list(rows), timezone.now(), count - len(rows))
            self._settle_deletion(request, review, list_url(Override), selection=digest_of(overrides), is_job=is_job)

    def _settle_deletion(
        self, request: HttpRequest, review: Review, back: str, *, is_job: bool = False, **hidden: str
    ) -> None:
        verb = "Delete the overrides" if "selection" in hidden else "Delete the override"
        more = {"no_form": True, "back_url": back, "back_text": "Back", "verb": verb, "enforce_verb": verb}
        reason = request.POST.get("change_reason", "")
        settle(request, review, reason, is_job=is_job, hidden={**DELETING, **hidden}, **more)


def _read(pk: str) -> Override | None:
    return Override.objects.select_related("limit__policy", "token__project", "project").filter(pk=pk).first()
