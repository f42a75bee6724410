"""A copy of a policy, from its page."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.policies.models import Policy
from tests.factories import LimitFactory, MembershipFactory, OverrideFactory, PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db


def copied(client, policy: Policy, slug: str, in_dialog: bool = True):
    form = {"_form_submitted": "on", "slug": slug, "name": "A copy", "reason": "to try"}
    headers = {"HX-Request": "true"} if in_dialog else {}
    return client.post(f"/admin/policies/policy/{policy.pk}/copy/", form, headers=headers)


@pytest.fixture
def policy() -> Policy:
    limit = LimitFactory(name="a", quota=7, mode="shadow", partition_by=["ip"], policy__metering={"default_cap": 512})
    LimitFactory(policy=limit.policy, name="b", match_path="/v1/*", on_store_failure="deny")
    OverrideFactory(limit=limit)
    return limit.policy


def test_a_copy_has_the_same_limits_and_no_holder(admin_client, policy):
    """Overrides stay with the limits that they were made for."""
    response = copied(admin_client, policy, "twin")

    twin = Policy.objects.get(slug="twin")
    assert response["HX-Redirect"] == f"/admin/policies/policy/{twin.pk.replace('_', '_5F')}/change/"
    assert [it.as_json() for it in twin.limits.all()] == [it.as_json() for it in policy.limits.all()]
    assert (twin.metering, twin.uses[:3], twin.is_global) == ({"default_cap": 512}, (0, 0, 0), False)
    entry = AuditEntry.objects.get(action="policy.create")
    assert (entry.object_label, entry.reason, len(entry.after["limits"])) == ("twin", "to try", 2)


@pytest.mark.parametrize(
    ("slug", "message"),
    [("taken", "exists already"), ("Not A Slug", "Use 1 to 63 lower-case letters"), ("", "This field is required")],
)
def test_a_slug_that_cannot_be_is_refused_in_the_dialog(admin_client, policy, slug, message):
    """With the rule, and nothing is saved."""
    PolicyFactory(slug="taken")

    response = copied(admin_client, policy, slug)

    assert message in response.text
    assert Policy.objects.count() == 2


def test_an_editor_copies_within_the_project(client):
    """The copy belongs to the same project, and its slug begins as those of the project do."""
    project = ProjectFactory(slug="mine")
    own = LimitFactory(policy=PolicyFactory(project=project)).policy
    client.force_login(MembershipFactory(project=project, role="editor").user)

    refused = copied(client, own, "free")
    copied(client, own, "mine--free")

    assert "only operators choose other names" in refused.text
    assert Policy.objects.get(slug="mine--free").project == project


@pytest.mark.parametrize("role", ["viewer", "editor"])
def test_a_shared_policy_is_copied_by_operators_only(client, policy, role):
    """The copy would be for every project."""
    client.force_login(MembershipFactory(role=role).user)

    response = copied(client, policy, "twin")

    assert response.status_code == 403
    assert Policy.objects.count() == 1
