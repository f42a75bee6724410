from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.objects.overrides.actions import end_overrides, save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.actions import replace_limits, set_global_policy
from controlplane.objects.policies.models import Limit, Policy
from enforcement.model.limits import Limit as LimitValue
from tests.controlplane.recorded import audited_actions, outbox
from tests.factories import (
    LimitFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)


def per_minute(name: str, quota: int) -> LimitValue:
    return LimitValue(name=name, quota=quota, window_seconds=60)


def test_the_global_policy_falls_on_everything(actor, store, document):
    """Setting it publishes it."""
    policy = PolicyFactory()

    with change(actor=actor) as tx:
        set_global_policy(tx, policy)

    assert document("global") == {"schema": 1, "policy": policy.pk}


def test_another_global_policy_takes_the_place_of_the_former(actor, store, document):
    """There is one at a time."""
    PolicyFactory(everywhere=True)
    policy = PolicyFactory()

    with change(actor=actor) as tx:
        set_global_policy(tx, policy)

    assert list(Policy.objects.filter(is_global=True)) == [policy]
    assert document("global") == {"schema": 1, "policy": policy.pk}


def test_the_global_policy_can_be_taken_away(actor, store, document):
    """None falls on everything then."""
    PolicyFactory(everywhere=True)

    with change(actor=actor) as tx:
        set_global_policy(tx, None)

    assert document("global") == {"schema": 1, "policy": None}


def test_setting_the_same_global_policy_changes_nothing(actor):
    """A repeated PUT leaves no trace."""
    policy = PolicyFactory(everywhere=True)

    with change(actor=actor) as tx:
        set_global_policy(tx, policy)

    assert (audited_actions(), outbox()) == ([], set())


def test_a_projects_policy_cannot_be_global(actor):
    """What one owns does not fall on others."""
    policy = PolicyFactory(project=ProjectFactory())

    with pytest.raises(ValidationError), change(actor=actor) as tx:
        set_global_policy(tx, policy)

    assert not Policy.objects.filter(is_global=True).exists()


def test_limits_are_replaced_in_order(actor):
    """A policy has exactly the limits of the request, in its order."""
    policy = LimitFactory(name="old").policy

    with change(actor=actor) as tx:
        replace_limits(tx, policy, [per_minute("b", 2), per_minute("a", 1)])

    assert list(policy.limits.values_list("name", "quota")) == [("b", 2), ("a", 1)]


def test_a_limit_that_keeps_its_name_keeps_its_overrides(actor):
    """Editing a quota does not take away what was granted to one token."""
    override = OverrideFactory(limit=LimitFactory(name="minute", quota=100))

    with change(actor=actor) as tx:
        replace_limits(tx, override.limit.policy, [per_minute("minute", 50)])

    assert Override.objects.get().limit.quota == 50


def test_the_holders_of_a_removed_limits_overrides_are_published(actor):
    """Their documents name a limit that is gone."""
    override = OverrideFactory()

    with change(actor=actor) as tx:
        replace_limits(tx, override.limit.policy, [])

    assert ("token", override.token.digest) in outbox()
    assert not Override.objects.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([per_minute("a", 1), per_minute("a", 2)], "name of its own"),
        ([per_minute(f"l{n}", 1) for n in range(33)], "at most 32"),
    ],
)
def test_limits_of_a_policy_are_few_and_distinct(actor, values, message):
    """Nothing is replaced by what cannot be enforced."""
    limit = LimitFactory(name="old")

    with pytest.raises(ValidationError, match=message), change(actor=actor) as tx:
        replace_limits(tx, limit.policy, values)

    assert list(Limit.objects.values_list("name", flat=True)) == ["old"]


def test_an_override_is_published_with_its_holder(actor, store, token_document):
    """An enforcer finds it in the token's document."""
    limit = LimitFactory(name="minute")
    override = OverrideFactory.build(limit=limit, token=TokenFactory(policy=limit.policy), quota=500)

    with change(actor=actor) as tx:
        save_override(tx, override)

    assert token_document(override.token.digest)["overrides"] == [
        {
            "id": override.pk,
            "policy": override.limit.policy_id,
            "limit": "minute",
            "quota": 500,
            "burst": None,
            "ends_at_us": None,
        }
    ]
    assert Override.objects.get().created_by == "ann"


def test_an_override_that_moves_is_taken_from_its_former_holder(actor):
    """Both documents change."""
    override = OverrideFactory()
    former, override.token = override.token, TokenFactory(policy=override.limit.policy)

    with change(actor=actor) as tx:
        save_override(tx, override)

    assert outbox() == {("token", former.digest), ("token", override.token.digest)}


def test_an_override_without_holder_is_refused(actor):
    """The door does not matter: the model's rules hold."""
    override = OverrideFactory.build(limit=LimitFactory(), token=None)

    with pytest.raises(ValidationError, match="one of the two"), change(actor=actor) as tx:
        save_override(tx, override)

    assert not Override.objects.exists()


def test_overrides_end(actor):
    """What has ended is kept as history, with a trace, and what has not stays in force."""
    now = timezone.now()
    ended = OverrideFactory(ends_at=now)
    going_on = OverrideFactory(ends_at=now + timedelta(seconds=1))

    with change(actor=actor) as tx:
        count = end_overrides(tx, now)

    assert (count, list(Override.objects.all())) == (1, [going_on])
    assert Override.with_ended.get(pk=ended.pk).ended_at == now
    assert audited_actions() == ["override.end"]
    assert outbox() == {("token", ended.token.digest)}


def test_an_override_may_follow_one_whose_end_has_come(actor):
    """The task that ends it may be late, for instance because no worker runs."""
    former = OverrideFactory(ended=True)
    override = Override(limit=former.limit, token=former.token, quota=700, reason="again")

    with change(actor=actor) as tx:
        save_override(tx, override)

    assert list(Override.objects.all()) == [override]
    assert audited_actions() == ["override.end", "override.create"]
