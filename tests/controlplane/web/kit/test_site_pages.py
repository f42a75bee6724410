import pytest
from django.urls import reverse
from django.utils import timezone

from controlplane.traffic.fleet.models import Instance
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    OverrideFactory,
    ProjectFactory,
    TokenFactory,
    UsageRowFactory,
)


def an_instance() -> Instance:
    now = timezone.now()
    return Instance.objects.create(
        id="proxy-1", host="proxy.example", state="degraded", seen_at=now, degraded_since=now
    )


LISTS = [
    "projects_project",
    "projects_token",
    "projects_managementkey",
    "policies_policy",
    "policies_limit",
    "policies_override",
    "policies_auditentry",
    "publishing_revision",
    "publishing_outboxentry",
    "fleet_instance",
    "usage_usagerow",
    "usage_dailyreport",
    "auth_user",
    "access_membership",
    "axes_accessattempt",
]
FORMS = ["projects_project", "projects_token", "projects_managementkey", "policies_policy", "policies_override"]


@pytest.mark.parametrize("name", LISTS)
def test_an_empty_list_is_shown(as_ann, name):
    """A new installation shows every list."""
    assert as_ann.get(reverse(f"admin:{name}_changelist")).status_code == 200


@pytest.mark.parametrize("name", FORMS)
def test_an_empty_form_is_shown(as_ann, name):
    """What people may make has a form."""
    assert as_ann.get(reverse(f"admin:{name}_add")).status_code == 200


@pytest.mark.parametrize(
    "factory", [ProjectFactory, TokenFactory, ManagementKeyFactory, LimitFactory, OverrideFactory, an_instance]
)
def test_a_row_stands_in_its_list(as_ann, factory):
    """Each list shows what there is."""
    row = factory()

    response = as_ann.get(reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_changelist"))

    assert response.status_code == 200
    assert response.context["cl"].result_count == 1


@pytest.mark.parametrize(
    "factory", [ProjectFactory, TokenFactory, ManagementKeyFactory, OverrideFactory, an_instance, UsageRowFactory]
)
def test_a_row_has_a_page(as_ann, factory):
    """Each row can be looked at."""
    row = factory()

    response = as_ann.get(reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk]))

    assert response.status_code == 200


def test_every_page_leads_to_the_documentation(as_ann):
    """Whoever does not know a word of a form finds the pages beside it."""
    for page in ("/admin/", "/admin/policies/policy/add/"):
        assert 'href="/docs/"' in as_ann.get(page).text


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "title"),
    [("auth_user", "People"), ("axes_accessattempt", "Sign-in failures"), ("access_membership", "Memberships")],
)
def test_a_list_has_the_title_of_its_entry_in_the_menu(as_ann, name, title):
    """Also where its model has another name. Those without an entry have the name of their model."""
    page = as_ann.get(reverse(f"admin:{name}_changelist")).content.decode()

    assert f"{title} | Sluicegate</title>" in page
    assert f'tracking-tight">{title}</a>' in page
