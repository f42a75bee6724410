"""An undo changes back what one revision changed, and nothing that was changed since."""

from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.overrides.actions import end_override, save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.actions import remove_limit, set_global_policy
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.actions import revoke_token
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import PublishedChange, Revision
from controlplane.releases.revisions import undo
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def limit(store) -> Limit:
    """A limit of 25 a minute, of a policy that is published."""
    limit = LimitFactory(policy__slug="chat-free", name="per-minute", quota=25)
    publisher.publish_all()
    return limit


@pytest.fixture
def edit(actor):
    """``edit(row, quota=2)``: save a row as a form does, and return the revision. A limit is part of its policy."""

    def save(row, **fields) -> int:
        whole = getattr(row, "policy", row) if isinstance(row, Limit) else row
        before = type(whole).objects.get(pk=whole.pk).as_record()
        with change(actor=actor) as tx:
            type(row).objects.filter(pk=row.pk).update(**fields)
            tx.updated(type(whole).objects.get(pk=whole.pk), before)
        return tx.revision

    return save


@pytest.fixture
def undone(actor):
    """``undone(number)``: undo a revision after looking at it, and return the new revision and what stays."""

    def run(number: int, chosen: str = "") -> tuple[int | None, list[str]]:
        revision, entries = Revision.objects.get(number=number), AuditEntry.objects.all()
        seen = undo.plan(undo.entries_to_undo(entries, revision, chosen)).digest
        with change(actor=actor, reason="too tight") as tx:
            plan = undo.plan(undo.locked(entries, revision, chosen))
            undo.apply(tx, plan, revision, seen)
        return tx.revision, [*plan.stays]

    return run


def test_a_quota_is_as_before(limit, edit, undone, document):
    """As a new revision, which the list joins with the one that it undoes."""
    number = edit(limit, quota=2)

    new, stays = undone(number)

    assert (new, stays, Limit.objects.get().quota) == (number + 1, [], 25)
    assert document(f"policy:{limit.policy_id}")["limits"][0]["quota"] == 25
    assert PublishedChange.objects.get(revision=new).undoes_id == number
    assert AuditEntry.objects.first().action == "policy.undo"


def test_what_was_changed_since_stays(limit, edit, undone):
    """Another field of the same limit, and another limit, are somebody's later decision."""
    number = edit(limit, quota=2)
    edit(limit, window_seconds=30)
    LimitFactory(policy=limit.policy, name="per-day", quota=1000)

    undone(number)

    assert set(Limit.objects.values_list("name", "quota", "window_seconds")) == {
        ("per-minute", 25, 30),
        ("per-day", 1000, 60),
    }


def test_a_value_that_was_changed_again_stays(limit, edit, undone):
    """And the page says so."""
    number = edit(limit, quota=2, window_seconds=10)
    edit(limit, quota=7)

    _, stays = undone(number)

    assert stays == ["Quota of chat-free/per-minute stays, because it was changed since."]
    assert Limit.objects.values_list("quota", "window_seconds").get() == (7, 60)


def test_a_removed_limit_comes_back_to_its_place_with_its_overrides(limit, actor, undone):
    """Its removal took them along."""
    LimitFactory(policy=limit.policy, name="per-day", position=limit.position + 1)
    override = OverrideFactory(limit=limit, quota=900)
    before = limit.policy.as_record()
    with change(actor=actor) as tx:
        remove_limit(tx, limit)
        tx.updated(Policy.objects.get(), before)

    undone(tx.revision)

    assert [row.name for row in Limit.objects.all()] == ["per-minute", "per-day"]
    assert [(row.limit.name, row.quota, row.token) for row in Override.objects.all()] == [
        ("per-minute", 900, override.token)
    ]


def test_an_added_limit_is_removed(limit, actor, undone):
    """Its counters end with their windows."""
    before = limit.policy.as_record()
    with change(actor=actor) as tx:
        LimitFactory(policy=limit.policy, name="per-day")
        tx.updated(Policy.objects.get(), before)

    undone(tx.revision)

    assert Limit.objects.get().name == "per-minute"


def test_a_deleted_policy_comes_back(limit, actor, undone):
    """Under its id, by which counters are kept."""
    policy = limit.policy
    with change(actor=actor) as tx:
        tx.created(policy)
    with change(actor=actor) as tx:
        tx.delete(Policy.objects.get())

    undone(tx.revision)

    assert Limit.objects.get().policy_id == policy.pk


def test_the_former_global_policy_applies_again(limit, actor, undone):
    """Both policies were changed by one press."""
    other = PolicyFactory(slug="other", is_global=True)
    with change(actor=actor) as tx:
        set_global_policy(tx, limit.policy)

    undone(tx.revision)

    assert Policy.objects.get(is_global=True) == other


def test_a_project_gets_its_policy_back(limit, edit, undone):
    """A switched-off project is active again."""
    project = ProjectFactory(policy=limit.policy)

    undone(edit(project, policy=None, active=False))

    assert Project.objects.values_list("policy", "active").get() == (limit.policy_id, True)


def test_a_token_gets_its_labels_and_end_back(store, edit, undone):
    """Both are fields of a form."""
    token = TokenFactory(labels={"team": "red"}, expires_at=timezone.now() + timedelta(days=2))

    undone(edit(token, labels={}, expires_at=None))

    assert Token.objects.values_list("labels", "expires_at").get() == ({"team": "red"}, token.expires_at)


def test_what_an_undo_leaves_out_is_said(limit, actor):
    """Nobody takes it for done."""
    token = TokenFactory(name="web")
    with change(actor=actor) as tx:
        tx.record("token.suspend", token, before={**token.as_record()}, after={**token.as_record(), "suspended": True})

    assert undo.plan(AuditEntry.objects.all()).stays == (f"Suspended of {token} is not undone here.",)


def test_a_revoked_token_stays_revoked(store, actor, undone):
    """Its secret may have leaked."""
    token = TokenFactory(name="web")
    with change(actor=actor) as tx:
        revoke_token(tx, token)

    with pytest.raises(ValidationError, match="Nothing of it is left to undo"):
        undone(tx.revision)

    plan = undo.plan(AuditEntry.objects.all())
    assert [*plan.stays] == [f"Token web ({token.prefix}…) stays revoked. Issue a new one, which has a new secret."]


def test_a_new_override_ends(limit, actor, undone):
    """It is kept as history, as one is that ends by itself."""
    override = Override(limit=limit, token=TokenFactory(policy=limit.policy), quota=500, reason="launch")
    with change(actor=actor) as tx:
        save_override(tx, override)

    undone(tx.revision)

    assert not Override.objects.exists()
    assert Override.with_ended.get().ended_at is not None


def test_an_ended_override_begins_again(limit, actor, undone):
    """Unless its own end has come."""
    override = OverrideFactory(limit=limit, quota=500, ends_at=timezone.now() + timedelta(days=1))
    with change(actor=actor) as tx:
        end_override(tx, override, timezone.now())

    undone(tx.revision)

    assert Override.objects.values_list("quota", "ends_at").get() == (500, override.ends_at)


def test_a_created_policy_stays(limit, actor, undone):
    """Nothing is deleted by an undo."""
    with change(actor=actor) as tx:
        tx.created(PolicyFactory(slug="new"))

    with pytest.raises(ValidationError, match="Nothing of it is left"):
        undone(tx.revision)

    assert Policy.objects.filter(slug="new").exists()


def test_an_undo_can_be_undone(limit, edit, undone):
    """It is a revision like any other."""
    new, _ = undone(edit(limit, quota=2))

    undone(new)

    assert Limit.objects.get().quota == 2


def test_a_second_undo_changes_nothing(limit, edit, undone):
    """Two people press the same button."""
    number = edit(limit, quota=2)
    undone(number)

    with pytest.raises(ValidationError, match="Nothing of it is left"):
        undone(number)


def test_what_somebody_changes_meanwhile_is_shown_first(limit, edit, actor):
    """Nobody confirms what was not on the page."""
    revision = Revision.objects.get(number=edit(limit, quota=2))
    seen = undo.plan(undo.entries_to_undo(AuditEntry.objects.all(), revision)).digest
    edit(limit, quota=7)

    with pytest.raises(undo.Changed), change(actor=actor) as tx:
        undo.apply(tx, undo.plan(undo.locked(AuditEntry.objects.all(), revision)), revision, seen)

    assert Limit.objects.get().quota == 7


def test_one_change_of_several_in_a_revision_is_undone(limit, edit, undone, stopped_publishing):
    """The store was away, so two changes became one revision."""
    with stopped_publishing():
        edit(limit, quota=2)
        chosen = AuditEntry.objects.first().change
        edit(ProjectFactory(slug="chat", name="Chat"), name="Other")
    number = publisher.publish_pending()

    undone(number, chosen)

    assert (Limit.objects.get().quota, Project.objects.get().name) == (25, "Other")


def test_a_revision_without_audit_cannot_be_undone(limit):
    """Of 0.2.0, or of the reconciler."""
    with pytest.raises(ValidationError, match="The audit does not say what this revision changed"):
        undo.entries_to_undo(AuditEntry.objects.all(), Revision.objects.get(number=1))


@pytest.mark.parametrize("factory", [ProjectFactory, TokenFactory])
def test_a_policy_that_is_deleted_since_does_not_come_back(limit, actor, edit, undone, factory):
    """What else was changed does, and the page says which policy stays."""
    row = factory(name="before", policy=limit.policy)
    number = edit(row, name="after", policy=PolicyFactory(slug="other"))
    with change(actor=actor) as tx:
        tx.delete(limit.policy)

    _, stays = undone(number)

    row.refresh_from_db()
    assert (row.name, row.policy.slug) == ("before", "other")
    assert next(text for text in stays if text.startswith("Policy of")).endswith("because the former one is deleted.")


def test_an_override_that_has_a_successor_stays_ended(limit, actor):
    """The page does not offer what could not be done."""
    token = TokenFactory(policy=limit.policy)
    override = OverrideFactory(limit=limit, token=token, quota=60)
    with change(actor=actor) as tx:
        end_override(tx, override, timezone.now())
    OverrideFactory(limit=limit, token=token, quota=99)

    plan = undo.plan(undo.entries_to_undo(AuditEntry.objects.all(), Revision.objects.get(number=tx.revision)))

    assert plan.objects == ()
    assert [*plan.stays] == [f"The override {override} stays ended, because there is another one since."]
