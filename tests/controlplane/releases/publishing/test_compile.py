"""Optional fields of a project in its document, and after a rollback."""

import pytest

from controlplane.changes.change.transaction import change
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing import compile
from controlplane.releases.publishing.rollback import rollback
from enforcement.model.documents import parse_project
from enforcement.model.strict_json import dumps
from tests.factories import PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)


def test_only_a_project_that_has_an_anonymous_policy_publishes_it():
    """Enforcers that do not know the field go on reading the documents of all other projects."""
    plain, open_to_all = ProjectFactory(), ProjectFactory(anonymous_policy=PolicyFactory())
    found = compile.documents([("project", plain.pk), ("project", open_to_all.pk)])

    assert "anonymous_policy" not in found[f"project:{plain.pk}"]
    assert parse_project(dumps(found[f"project:{plain.pk}"])).anonymous_policy is None
    assert parse_project(dumps(found[f"project:{open_to_all.pk}"])).anonymous_policy == open_to_all.anonymous_policy_id


def test_a_rollback_brings_the_anonymous_policy_back(store, actor):
    """As it was published then, and as it was not."""
    policy = PolicyFactory()
    project = ProjectFactory(anonymous_policy=policy)
    with change(actor=actor) as tx:
        tx.created(policy)
        tx.created(project)
    before = project.as_record()
    with change(actor=actor) as tx:
        project.anonymous_policy = None
        project.save()
        tx.updated(project, before)
    with change(actor=actor, reason="too strict") as tx:
        rollback(tx, 1)
    assert Project.objects.get().anonymous_policy == policy

    with change(actor=actor, reason="too wide") as tx:
        rollback(tx, 2)
    assert Project.objects.get().anonymous_policy is None


def test_a_default_cap_is_not_published():
    """So that enforcers that do not know the field go on reading the documents of whoever does not use it."""
    plain, capped = ProjectFactory(), ProjectFactory(partition_cap=9)
    found = compile.documents([("project", plain.pk), ("project", capped.pk)])

    assert "partition_cap" not in found[f"project:{plain.pk}"]
    assert parse_project(dumps(found[f"project:{plain.pk}"])).partition_cap == 10_000
    assert found[f"project:{capped.pk}"]["partition_cap"] == 9


def test_a_rollback_brings_the_cap_back(store, actor):
    """As it was published then."""
    project = ProjectFactory(partition_cap=9)
    with change(actor=actor) as tx:
        tx.created(project)
    before = project.as_record()
    with change(actor=actor) as tx:
        project.partition_cap = 10_000
        project.save()
        tx.updated(project, before)
    with change(actor=actor, reason="too wide") as tx:
        rollback(tx, 1)

    assert Project.objects.get().partition_cap == 9
