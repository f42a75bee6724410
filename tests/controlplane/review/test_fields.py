"""Rules for metered requests are reviewed as the limits of a policy are."""

import pytest

from controlplane.policies.models import Policy
from tests.controlplane.adminkit.reviews import enforce
from tests.controlplane.adminkit.test_forms import POLICIES, fields_of, policy_fields
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
