import pytest
from django.core.exceptions import ValidationError

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.policies.actions import set_global_policy
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing.models import Revision
from controlplane.releases.publishing.rollback import rollback
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def published_project(store, actor):
    """Revision 1: a policy of 100 a minute, attached to an active project, and global."""
    limit = LimitFactory(policy__slug="standard", name="minute", quota=100)
    project = ProjectFactory(policy=limit.policy)
    with change(actor=actor) as tx:
        tx.created(limit.policy)
        tx.created(project)
        set_global_policy(tx, limit.policy)
    assert tx.revision == 1
    return project


def roll_back(actor, number: int) -> int | None:
    with change(actor=actor, reason="too tight") as tx:
        rollback(tx, number)
    return tx.revision


def test_a_revision_that_does_not_say_what_was_global_changes_nothing_of_it(published_project, actor):
    """What is missing is unknown, and not the choice of no policy."""
    Revision.objects.filter(number=1).update(changes={"full": True, "documents": {}})

    roll_back(actor, 1)

    assert Policy.objects.get().is_global


def test_a_policy_is_restored_with_its_limits(published_project, actor, document):
    """What enforcers were told then they are told again, under a new number."""
    policy = Policy.objects.get()
    before = policy.as_record()
    with change(actor=actor) as tx:
        policy.name = "Tight"
        policy.save()
        Limit.objects.update(quota=1)
        tx.updated(policy, before)

    assert roll_back(actor, 1) == 3
    assert Limit.objects.get().quota == 100
    assert document(f"policy:{policy.pk}")["name"] != "Tight"
    assert document(f"policy:{policy.pk}")["version"] == 4


def test_a_policy_is_restored_with_its_rules_for_metered_requests(published_project, actor, document):
    """What was added since is gone again, also if nothing else was changed."""
    policy = Policy.objects.get()
    for metering in ({"default_cap": 500}, {}):
        before = policy.as_record()
        with change(actor=actor) as tx:
            policy.metering = metering
            policy.save()
            tx.updated(policy, before)

    roll_back(actor, 2)
    assert Policy.objects.get().metering == document(f"policy:{policy.pk}")["metering"] == {"default_cap": 500}

    roll_back(actor, 1)
    assert Policy.objects.get().metering == {}
    assert "metering" not in document(f"policy:{policy.pk}")


def test_a_project_gets_its_policy_and_state_back(published_project, actor):
    """Detached and switched off since, it is attached and active again."""
    before = published_project.as_record()
    with change(actor=actor) as tx:
        published_project.policy, published_project.active = None, False
        published_project.save()
        tx.updated(published_project, before)

    roll_back(actor, 1)

    project = Project.objects.get()
    assert (project.policy.slug, project.active) == ("standard", True)


def test_the_global_policy_is_restored(published_project, actor, document):
    """It falls on everything again."""
    with change(actor=actor) as tx:
        set_global_policy(tx, None)

    roll_back(actor, 1)

    assert document("global")["policy"] == Policy.objects.get().pk


def test_a_deleted_policy_comes_back_under_its_id(published_project, actor):
    """Counters are kept by policy id: they go on where they were."""
    policy, before = Policy.objects.get(), published_project.as_record()
    with change(actor=actor) as tx:
        published_project.policy = None
        published_project.save()
        tx.updated(published_project, before)
        tx.delete(policy)

    roll_back(actor, 1)

    assert Policy.objects.get().pk == Project.objects.get().policy_id
    assert Limit.objects.get().name == "minute"


@pytest.fixture
def private(published_project, actor):
    """Revision 2: a policy that a project owns, attached to it, and detached and deleted since."""
    policy = PolicyFactory(slug="private", description="ours", project=ProjectFactory(slug="chat"))
    project = policy.project
    with change(actor=actor) as tx:
        tx.created(policy)
    with change(actor=actor) as tx:
        tx.delete(policy)
    return project


def test_a_deleted_policy_comes_back_to_its_owner(private, actor):
    """Without an owner it would be shared by all projects, and every key would read it."""
    roll_back(actor, 2)

    policy = Policy.objects.get(slug="private")
    assert (policy.project, policy.description) == (private, "ours")


def test_a_deleted_policy_of_a_deleted_project_does_not_come_back(private, actor):
    """Nobody is left to whom it could belong."""
    with change(actor=actor) as tx:
        tx.delete(private)

    roll_back(actor, 2)

    assert not Policy.objects.filter(slug="private").exists()


def test_a_policy_that_was_deleted_with_its_project_does_not_come_back(published_project, actor):
    """The audit has an entry of its deletion too."""
    policy = PolicyFactory(slug="private", project=ProjectFactory(slug="chat"))
    with change(actor=actor) as tx:
        tx.created(policy)
    with change(actor=actor) as tx:
        tx.delete(policy.project)

    roll_back(actor, 2)

    assert not Policy.objects.filter(slug="private").exists()


def test_a_policy_of_an_unknown_owner_is_not_restored(published_project, actor):
    """It would be shared by all projects, although it may have been one's own."""
    policy = PolicyFactory(slug="private")
    with change(actor=actor) as tx:
        tx.touch("policy", policy.pk)
    policy.delete()

    with pytest.raises(ValidationError, match="the audit does not say which project owned it"):
        roll_back(actor, 2)


def test_a_deleted_project_does_not_come_back(published_project, actor):
    """Its tokens are gone, so it would be an empty shell."""
    with change(actor=actor) as tx:
        tx.delete(published_project)

    roll_back(actor, 1)

    assert not Project.objects.exists()


def test_what_was_made_since_stays(published_project, actor):
    """Deleting is a decision of its own."""
    with change(actor=actor) as tx:
        tx.created(PolicyFactory(slug="newer"))

    roll_back(actor, 1)

    assert set(Policy.objects.values_list("slug", flat=True)) == {"standard", "newer"}


def test_overrides_outlive_a_rollback(published_project, actor):
    """What was granted to one token is not taken away with the quota of all."""
    override = OverrideFactory(limit=Limit.objects.get())
    before = override.limit.policy.as_record()
    with change(actor=actor) as tx:
        Limit.objects.update(quota=1)
        tx.updated(override.limit.policy, before)

    roll_back(actor, 1)

    override.refresh_from_db()
    assert override.limit.quota == 100


def test_a_rollback_to_the_present_changes_nothing(published_project, actor):
    """No new version, no new revision."""
    assert roll_back(actor, 1) is None
    assert Policy.objects.get().version == 2
    assert not AuditEntry.objects.filter(action__endswith="rollback").exists()


def test_a_slug_that_is_taken_meanwhile_stops_the_rollback(published_project, actor):
    """Nothing is restored by half."""
    policy = Policy.objects.get()
    before = policy.as_record()
    with change(actor=actor) as tx:
        policy.slug = "renamed"
        policy.save()
        Limit.objects.update(quota=1)
        tx.updated(policy, before)
        tx.created(PolicyFactory(slug="standard"))

    with pytest.raises(ValidationError, match="slug"):
        roll_back(actor, 1)

    assert Limit.objects.get().quota == 1


def test_an_unknown_revision_is_refused(published_project, actor):
    """There is nothing to go back to."""
    with pytest.raises(Revision.DoesNotExist):
        roll_back(actor, 99)


def test_a_limit_that_only_0_2_0_accepted_is_restored(published_project, actor, document):
    """A roll-back is made in a hurry: what was published then is published again."""
    policy = Policy.objects.get()
    for path in ("v1/*", ""):
        with change(actor=actor) as tx:
            before = policy.as_record()
            Limit.objects.update(match_path=path)
            tx.updated(policy, before)

    roll_back(actor, 2)

    assert document(f"policy:{policy.pk}")["limits"][0]["match"] == {"path": "v1/*"}


@pytest.fixture
def owned(store, actor):
    """Revision 1: a policy that belongs to a project."""
    policy = LimitFactory(policy__project=ProjectFactory(), policy__description="of one tenant").policy
    with change(actor=actor) as tx:
        tx.created(policy)
        tx.created(policy.project)
    return policy


def test_a_deleted_policy_gets_its_owner_back(owned, actor):
    """Its document does not name the project, and without one every project could use it."""
    with change(actor=actor) as tx:
        tx.delete(Policy.objects.get())

    roll_back(actor, 1)

    restored = Policy.objects.get()
    assert (restored.pk, restored.project, restored.description) == (owned.pk, owned.project, "of one tenant")


def test_a_policy_of_a_deleted_project_stays_deleted(owned, actor):
    """As a policy that all projects share, it would be another one."""
    with change(actor=actor) as tx:
        tx.delete(Project.objects.get())

    assert roll_back(actor, 1) is None
    assert not Policy.objects.exists()
