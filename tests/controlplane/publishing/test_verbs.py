import json
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.policies.models import AuditEntry, Limit, Override, Policy
from controlplane.projects.models import ManagementKey
from controlplane.publishing import publisher, verbs
from controlplane.publishing.changes import change
from controlplane.publishing.models import OutboxEntry
from enforcement.model.limits import Limit as LimitValue
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)


def outbox() -> set[tuple[str, str]]:
    return set(OutboxEntry.objects.values_list("kind", "object_id"))


def actions() -> list[str]:
    return list(AuditEntry.objects.order_by("id").values_list("action", flat=True))


def per_minute(name: str, quota: int) -> LimitValue:
    return LimitValue(name=name, quota=quota, window_seconds=60)


def test_an_issued_token_is_known_to_enforcers(actor, store, token_document):
    """A token works as soon as its secret is shown."""
    project = ProjectFactory()

    with change(actor=actor) as tx:
        token, secret = verbs.issue_token(tx, project=project, name="ci")

    assert secret.startswith("sg_live_")
    assert token_document(token.digest) == {
        "schema": 1,
        "id": token.pk,
        "project": project.pk,
        "name": "ci",
        "policy": None,
        "revoked": False,
        "expires_at_us": None,
        "overrides": [],
    }


def test_a_revoked_token_is_refused_everywhere(actor, store, token_document):
    """Enforcers are told that it is revoked: its holder reads why."""
    token = TokenFactory()

    with change(actor=actor, reason="leaked") as tx:
        verbs.revoke_token(tx, token)

    assert token_document(token.digest)["revoked"] is True
    assert actions() == ["token.revoke"]


def test_revoking_twice_is_revoking_once(actor):
    """A repeated request changes nothing and leaves no second trace."""
    token = TokenFactory(revoked=True)
    revoked_at = token.revoked_at

    with change(actor=actor) as tx:
        verbs.revoke_token(tx, token)

    token.refresh_from_db()
    assert token.revoked_at == revoked_at
    assert actions() == []


def test_rotation_publishes_both_tokens(actor, store, token_document):
    """The new token works and the old one has its end, in one revision."""
    token = TokenFactory()

    with change(actor=actor) as tx:
        issued, _ = verbs.rotate_token(tx, token, overlap_seconds=60)

    assert tx.revision == 1
    assert token_document(issued.digest)["expires_at_us"] is None
    assert token_document(token.digest)["expires_at_us"] > timezone.now().timestamp() * 1e6
    assert actions() == ["token.rotate", "token.create"]


def test_a_management_key_is_revoked_without_a_publication(actor, store):
    """Enforcers do not know management keys."""
    key = ManagementKeyFactory()

    with change(actor=actor) as tx:
        verbs.revoke_management_key(tx, key)

    assert ManagementKey.objects.get().status == "revoked"
    assert (tx.revision, actions(), outbox()) == (None, ["managementkey.revoke"], set())


def test_the_global_policy_falls_on_everything(actor, store, document):
    """Setting it publishes it."""
    policy = PolicyFactory()

    with change(actor=actor) as tx:
        verbs.set_global_policy(tx, policy)

    assert document("global") == {"schema": 1, "policy": policy.pk}


def test_another_global_policy_takes_the_place_of_the_former(actor, store, document):
    """There is one at a time."""
    PolicyFactory(everywhere=True)
    policy = PolicyFactory()

    with change(actor=actor) as tx:
        verbs.set_global_policy(tx, policy)

    assert list(Policy.objects.filter(is_global=True)) == [policy]
    assert document("global") == {"schema": 1, "policy": policy.pk}


def test_the_global_policy_can_be_taken_away(actor, store, document):
    """None falls on everything then."""
    PolicyFactory(everywhere=True)

    with change(actor=actor) as tx:
        verbs.set_global_policy(tx, None)

    assert document("global") == {"schema": 1, "policy": None}


def test_setting_the_same_global_policy_changes_nothing(actor):
    """A repeated PUT leaves no trace."""
    policy = PolicyFactory(everywhere=True)

    with change(actor=actor) as tx:
        verbs.set_global_policy(tx, policy)

    assert (actions(), outbox()) == ([], set())


def test_a_projects_policy_cannot_be_global(actor):
    """What one owns does not fall on others."""
    policy = PolicyFactory(project=ProjectFactory())

    with pytest.raises(ValidationError), change(actor=actor) as tx:
        verbs.set_global_policy(tx, policy)

    assert not Policy.objects.filter(is_global=True).exists()


def test_limits_are_replaced_in_order(actor):
    """A policy has exactly the limits of the request, in its order."""
    policy = LimitFactory(name="old").policy

    with change(actor=actor) as tx:
        verbs.replace_limits(tx, policy, [per_minute("b", 2), per_minute("a", 1)])

    assert list(policy.limits.values_list("name", "quota")) == [("b", 2), ("a", 1)]


def test_a_limit_that_keeps_its_name_keeps_its_overrides(actor):
    """Editing a quota does not take away what was granted to one token."""
    override = OverrideFactory(limit=LimitFactory(name="minute", quota=100))

    with change(actor=actor) as tx:
        verbs.replace_limits(tx, override.limit.policy, [per_minute("minute", 50)])

    assert Override.objects.get().limit.quota == 50


def test_the_holders_of_a_removed_limits_overrides_are_published(actor):
    """Their documents name a limit that is gone."""
    override = OverrideFactory()

    with change(actor=actor) as tx:
        verbs.replace_limits(tx, override.limit.policy, [])

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
        verbs.replace_limits(tx, limit.policy, values)

    assert list(Limit.objects.values_list("name", flat=True)) == ["old"]


def test_an_override_is_published_with_its_holder(actor, store, token_document):
    """An enforcer finds it in the token's document."""
    override = OverrideFactory.build(limit=LimitFactory(name="minute"), token=TokenFactory(), quota=500)

    with change(actor=actor) as tx:
        verbs.save_override(tx, override)

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
    former, override.token = override.token, TokenFactory()

    with change(actor=actor) as tx:
        verbs.save_override(tx, override)

    assert outbox() == {("token", former.digest), ("token", override.token.digest)}


def test_an_override_without_holder_is_refused(actor):
    """The door does not matter: the model's rules hold."""
    override = OverrideFactory.build(limit=LimitFactory(), token=None)

    with pytest.raises(ValidationError, match="one of the two"), change(actor=actor) as tx:
        verbs.save_override(tx, override)

    assert not Override.objects.exists()


def test_overrides_end(actor):
    """What has ended is removed, with a trace, and what has not stays."""
    now = timezone.now()
    ended = OverrideFactory(ends_at=now)
    going_on = OverrideFactory(ends_at=now + timedelta(seconds=1))

    with change(actor=actor) as tx:
        count = verbs.end_overrides(tx, now)

    assert (count, list(Override.objects.all())) == (1, [going_on])
    assert actions() == ["override.delete"]
    assert outbox() == {("token", ended.token.digest)}


def test_a_reset_reaches_the_change_log(actor, store, client_of_store):
    """Enforcers forget what they remember of a token when its counters are reset."""
    token, limit = TokenFactory(), LimitFactory(name="minute")
    publisher.publish_all()

    with change(actor=actor, reason="support call") as tx:
        verbs.reset_counters(tx, token, limit)

    _, entry = client_of_store.xrevrange("sg:{doc}:log", count=1)[0]
    assert json.loads(entry["changes"])["resets"] == [{"project": token.project_id, "token": token.pk}]
    assert AuditEntry.objects.get().after == {"limit": f"{limit.policy.slug}/minute"}


def test_two_resets_of_one_thing_are_both_published(actor, store):
    """A second reset, after a publication, is no repetition of the first."""
    token = TokenFactory()
    for expected in (1, 2):
        with change(actor=actor) as tx:
            verbs.reset_counters(tx, token)
        assert tx.revision == expected
