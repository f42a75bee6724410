"""Addresses that nobody clicks, of forged or broken links: never an error of the server, and never a blank page."""

import pytest
from django.contrib.auth.models import User

from controlplane.objects.policies.models import Policy
from tests.controlplane.conftest import PASSWORD
from tests.controlplane.web.site.test_error_pages import leads_back
from tests.factories import LimitFactory, MembershipFactory

pytestmark = pytest.mark.django_db(transaction=True)

WITH_NULL = [
    *("projects/token/?project__id__exact=%00", "policies/auditentry/?object_id=%00", "usage/usagerow/?unit=%00"),
    *("usage/deniedrequest/?token_id=a%00", "projects/project/%00/change/", "projects/token/%00/counters/"),
    *("search/?s=%00", "autocomplete/?term=%00&app_label=projects&model_name=token&field_name=project"),
]
NO_KEY = [
    *("publishing/revision/abc/change/", "auth/user/abc/change/", "auth/user/abc/delete/", "auth/user/abc/password/"),
    *("access/membership/abc/change/", "projects/token/abc/change/"),
]


@pytest.mark.parametrize("address", WITH_NULL)
def test_a_null_character_is_refused(as_ann, address):
    """No database holds one, and PostgreSQL cannot even look for one."""
    page = as_ann.get(f"/admin/{address}")

    assert (page.status_code, leads_back(page)) == (400, True)


@pytest.mark.parametrize(
    ("address", "field"),
    [
        ("projects/token/", {"action": "revoke_selected", "_selected_action": "\0"}),
        ("projects/token/add/", {"name": "ci", "project": "\0"}),
        ("policies/policy/advice/", {"policy": "a\0"}),
    ],
)
def test_a_null_character_in_a_field_is_refused(as_ann, store, address, field):
    """A form that no browser sends."""
    page = as_ann.post(f"/admin/{address}", field)

    assert (page.status_code, leads_back(page)) == (400, True)


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("address", NO_KEY)
def test_a_key_that_no_row_can_have_is_not_found(as_ann, store, method, address):
    """The user is told so on the first page, or by the page of an error."""
    page = getattr(as_ann, method)(f"/admin/{address}", follow=True)

    # 403 is the response to a form for a page that only shows rows.
    assert page.status_code in ((200, 404) if method == "get" else (200, 403, 404))
    assert page.status_code != 200 or "exist. Perhaps it was deleted?" in page.content.decode()


def test_an_export_with_an_unknown_filter_is_refused(as_ann):
    """The list then shows all rows, and says so. A file cannot."""
    page = as_ann.get("/admin/usage/usagerow/export.csv?nonsense=1")

    assert (page.status_code, leads_back(page)) == (400, True)


@pytest.mark.parametrize("address", ["usagerow/export.csv", "dailyreport/1/page/", "dailyreport/1/csv/"])
def test_a_file_that_the_user_may_not_read_leads_back(client, address):
    """Not with a blank page."""
    client.force_login(User.objects.create_user("bob", is_staff=True))

    page = client.get(f"/admin/usage/{address}")

    assert (page.status_code, leads_back(page)) == (403, True)


def test_a_report_that_is_not_there_leads_back(as_ann):
    """Neither the page nor the file."""
    pages = [as_ann.get(f"/admin/usage/dailyreport/1/{kind}/") for kind in ("page", "csv")]

    assert [(page.status_code, leads_back(page)) for page in pages] == [(404, True)] * 2


def test_a_policy_is_read_without_the_right_to_change_it(walker):
    """The script of the form finds no fields, and no error is logged in the browser."""
    policy = LimitFactory(name="per-minute", policy__slug="starter").policy
    MembershipFactory(user=User.objects.create_user("bob", password=PASSWORD, is_staff=True))
    walker.enter("bob")

    walker.open(f"/admin/policies/policy/{policy.pk}/change/")

    walker.reads("per-minute")
    walker.look("policy-to-read")


@pytest.mark.parametrize("initial", [0, 99_999_999])
def test_a_form_of_too_many_limits_is_refused(as_ann, store, initial):
    """Not after it has built each of them."""
    counts = {"limits-TOTAL_FORMS": "99999999", "limits-INITIAL_FORMS": initial}

    page = as_ann.post("/admin/policies/policy/add/", {"slug": "starter", "name": "Starter", **counts})

    (limits,) = page.context["inline_admin_formsets"]
    assert limits.formset.non_form_errors() == ["Please submit at most 32 forms."]
    assert len(limits.formset.forms) == 64


def test_a_form_of_more_limits_than_a_policy_has_saves_nothing(as_ann, store):
    """It would be a policy that cannot be published. What was typed stays, also in the last of them."""
    limit = {"unit": "requests", "algorithm": "fixed_window", "window_seconds": "1 minute", "mode": "shadow"}
    limit |= {"consistency": "strict", "on_store_failure": "local", "quota": "10"}
    fields = {f"limits-{n}-{name}": value for n in range(33) for name, value in {**limit, "name": f"l{n}"}.items()}
    counts = {"limits-TOTAL_FORMS": "33", "limits-INITIAL_FORMS": "0"}

    page = as_ann.post("/admin/policies/policy/add/", {"slug": "starter", "name": "Starter", **counts, **fields})

    text = page.content.decode()
    assert "A policy must have at most 32 limits." in text
    assert 'value="l32"' in text
    assert not Policy.objects.exists()
    fewer = as_ann.post(
        "/admin/policies/policy/add/",
        {"slug": "starter", "name": "Starter", **counts, **fields, "limits-32-DELETE": "on"},
    )
    assert fewer.status_code == 302
    assert Policy.objects.get().limits.count() == 32
