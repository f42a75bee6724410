"""
Policies that are prepared and not published.

A draft is a row of its own, beside the policies. So no publication contains one, and enforcers never hear of it.
"""

from functools import partial
from typing import Any

from django.db import models
from django.utils import timezone

from controlplane.changes.words.change import Change, ObjectChange, State
from controlplane.core.ids import new_id
from controlplane.core.records import RecordedModel
from controlplane.core.text import PRINTABLE
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import SLUG_RULE, Project


class PolicyDraft(RecordedModel):
    """
    A new policy, or a change of one, that is not published yet.

    Attributes:
        policy: The policy that it changes. None: it is a new one, or that policy was deleted since.
        policy_key: The id of the policy, which a new one does not have yet. A deleted one gets it back.
        project: The project whose members see it. None: only operators do, because all projects share the policy.
        content: The fields of the policy and its limits, as in a record of the policy. ``ids`` has the limits that the
            policy had when the draft was saved, by their names in the draft, so that a renamed limit stays the same.
        based_on: The version of the policy when the draft was saved. None for a new one.
    """

    OPEN, PUBLISHED, DISCARDED = "open", "published", "discarded"
    STATES = ((OPEN, "open"), (PUBLISHED, "published"), (DISCARDED, "discarded"))
    FIELDS = ("slug", "name", "description", "metering", "limits")

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "drf"), editable=False)
    # What somebody has prepared is not lost with the policy: the draft then is one of a new policy.
    policy = models.ForeignKey(Policy, models.SET_NULL, null=True, related_name="drafts", editable=False, blank=True)
    policy_key = models.CharField(max_length=40, editable=False)
    project = models.ForeignKey(
        Project, models.CASCADE, null=True, related_name="policy_drafts", editable=False, blank=True
    )
    slug = models.CharField(max_length=63, validators=[SLUG_RULE])
    content = models.JSONField()
    based_on = models.PositiveIntegerField(null=True, blank=True)
    state = models.CharField(max_length=10, choices=STATES, default=OPEN)
    saved_by = models.CharField(max_length=200, validators=[PRINTABLE])
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-updated_at", "-id"]
        verbose_name = "draft"
        indexes = [models.Index(fields=["state", "-updated_at"], name="drafts_draft_state")]

    def __str__(self) -> str:
        return f"{self.slug} (draft)"

    @classmethod
    def give_back(cls, policy: Policy) -> None:
        """Give a policy that exists again its drafts back, which its deletion has left without it."""
        cls.objects.filter(policy=None, policy_key=policy.pk).update(policy=policy, based_on=None)

    @property
    def is_open(self) -> bool:
        return self.state == self.OPEN

    @property
    def is_behind(self) -> bool:
        """Whether the policy was changed since the draft was saved, so that publishing it replaces that change."""
        return self.policy is not None and self.policy.version != self.based_on

    @property
    def is_orphan(self) -> bool:
        """Whether its policy was deleted since it was saved or published."""
        return self.policy_id is None and (self.based_on is not None or self.state == self.PUBLISHED)

    def as_change(self, content: dict[str, Any] | None = None) -> Change:
        """Return what publishing it, or such a draft with another content, would do to the policy as it is now."""
        wanted, now = content or self.content, self.policy.as_record() if self.policy else None
        before, after = (one and {name: one.get(name) for name in self.FIELDS} for one in (now, wanted))
        one = ObjectChange("policy", self.policy_key, wanted["slug"], before, after, self.project_id)
        return Change((one,), state=State.KEPT, by=self.saved_by)

    def as_record(self) -> dict[str, Any]:
        fields = {name: self.content.get(name) for name in self.FIELDS}
        more = {"policy": self.policy_key, "project": self.project_id, "state": self.state}
        return {"id": self.pk, **more, **fields}
