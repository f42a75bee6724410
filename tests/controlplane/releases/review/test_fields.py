"""Rules for metered requests are reviewed as the limits of a policy are."""

from functools import partial

import pytest

from controlplane.objects.policies.models import Policy
from tests.controlplane.web.kit.reviews import ReviewForm, enforce
from tests.controlplane.web.kit.test_forms import POLICIES, fields_of, policy_fields
from tests.factories import LimitFactory, PolicyFactory, TokenFactory


@pytest.mark.django_db
def test_a_rule_for_metered_requests_is_reviewed(as_ann):
    """It cannot be replayed, and no shadow measures it."""
    policy = PolicyFactory(slug="free")
    limit = LimitFactory(policy=policy, unit="input_tokens", quota=1000, algorithm="sliding_window")
    TokenFactory(policy=policy)
    fields = policy_fields(policy, fields_of(limit, unit="input_tokens", quota=1000), initial=1, estimate="bound")

    review = as_ann.post(f"{POLICIES}{policy.pk}/change/", fields)

    page = review.content.decode()
    assert "free changes (Input estimate" in page
    assert "<ins>upper bound (denied if unbounded)</ins>" in page
    assert "What requests cost in tokens or money is not recorded before a limit denies them." in page
    assert 'value="shadow"' not in page
    assert Policy.objects.get().metering == {}
    enforce(as_ann, review)
    assert Policy.objects.get().metering == {"estimate": "bound", "on_disconnect": "drain"}


@pytest.mark.django_db
def test_what_an_outage_does_is_reviewed(as_ann):
    """It is said before and after, no shadow measures it, and its confirmation is none of another choice."""
    policy = PolicyFactory(slug="free")
    limit = LimitFactory(policy=policy, name="m", algorithm="sliding_window")
    TokenFactory(policy=policy)
    address, fields = f"{POLICIES}{policy.pk}/change/", partial(policy_fields, policy, initial=1)

    review = as_ann.post(address, fields(fields_of(limit, on_store_failure="deny")))
    page = review.content.decode()
    other = as_ann.post(address, fields(fields_of(limit, on_store_failure="allow")))

    assert "free gets tighter (m)" in page
    assert "If the store is unavailable: each process enforces its share</del>" in page
    assert "If the store is unavailable: every request is denied</ins>" in page
    assert "while the store is unavailable</span>" in page
    assert 'value="shadow"' not in page
    assert "A day in shadow gives an answer." not in page
    assert "free gets looser (m)" in other.content.decode()
    assert ReviewForm(review).fields["_seen"] != ReviewForm(other).fields["_seen"]
    enforce(as_ann, review)
    assert policy.limits.get().on_store_failure == "deny"
