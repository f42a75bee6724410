"""Rules for metered requests are reviewed as the limits of a policy are."""

import pytest

from controlplane.policies.models import Policy
from controlplane.review.fields import metering_changes
from tests.controlplane.adminkit.reviews import enforce
from tests.controlplane.adminkit.test_forms import POLICIES, fields_of, policy_fields
from tests.factories import LimitFactory, PolicyFactory, TokenFactory


def test_each_rule_is_told_in_words():
    """Those that stay are not told."""
    before = {"metering": {"default_cap": 100, "part_tokens": {"image": 1000}}}
    after = {"metering": {"estimate": "bound", "part_tokens": {"image": 900}, "clamp_at_least": 50, "lost_after": 60}}

    assert [(one.name, one.was, one.becomes) for one in metering_changes(before, after)] == [
        ("estimate of the input", "typical", "bound: what has no bound is denied"),
        ("default cap", "100 output tokens", "the usual one"),
        ("tokens of other parts", "image 1,000", "image 900"),
        ("if the client leaves", "the call is cancelled", "the answer is read to its end"),
        ("caps are lowered", "never: the request is denied", "to 50 output tokens"),
        ("lost requests are settled as their estimates", "after 3,600 seconds", "after 60 seconds"),
    ]
    assert not list(metering_changes({}, {"metering": {}}))


@pytest.mark.django_db
def test_a_rule_for_metered_requests_is_reviewed(as_ann):
    """It cannot be replayed, and no shadow measures it."""
    policy = PolicyFactory(slug="free")
    limit = LimitFactory(policy=policy, unit="input_tokens", quota=1000, algorithm="sliding_window")
    TokenFactory(policy=policy)
    fields = policy_fields(policy, fields_of(limit, unit="input_tokens", quota=1000), initial=1, estimate="bound")

    review = as_ann.post(f"{POLICIES}{policy.pk}/change/", fields)

    page = review.content.decode()
    assert "free changes (estimate of the input" in page
    assert "<ins>bound: what has no bound is denied</ins>" in page
    assert "What requests cost in tokens or money is not recorded before a limit denies them." in page
    assert 'value="shadow"' not in page
    assert Policy.objects.get().metering == {}
    enforce(as_ann, review)
    assert Policy.objects.get().metering == {"estimate": "bound", "on_disconnect": "drain"}
