"""A form that was open for a day. Nothing that was typed is lost, and the page says what has changed meanwhile."""

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from playwright.sync_api import expect

from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from tests.controlplane.conftest import PASSWORD
from tests.controlplane.web.kit.walking import Walker
from tests.factories import ProjectFactory

A_DAY = 24 * 3_600_000


@pytest.mark.browser_context_args  # a context of its own, since the clock is one of all its pages
@pytest.mark.django_db(transaction=True)
def test_a_form_that_was_open_for_a_day_loses_nothing(walker):
    """The session has ended. The user signs in in another tab, and saves what the first one still holds."""
    page = walker.page
    page.clock.install()
    walker.enter("ann")
    walker.open("/admin/policies/policy/add/")
    page.get_by_label("Slug").fill("chat-free")
    page.locator("#id_name").fill("Free chat")
    page.locator("#id_limits-0-name").fill("per-minute")
    page.locator("#id_limits-0-quota").fill("25")
    page.locator("#id_limits-0-window_seconds").fill("1 minute")
    Session.objects.all().delete()
    page.clock.fast_forward(A_DAY)

    walker.press("Add policy")
    walker.reads("You are signed out, so nothing was saved.")
    walker.look("signed-out")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Sign in in another tab").click()
    other = opened.value
    other.get_by_label("Username").fill("ann")
    other.get_by_label("Password").fill(PASSWORD)
    other.get_by_role("button", name="Log in").click()
    expect(other.get_by_label("Slug")).to_be_visible()
    walker.press("Add policy")

    walker.reads("was added successfully")
    assert [limit.quota for limit in Policy.objects.get(slug="chat-free").limits.all()] == [25]
    other.close()
    what_is_gone_keeps_what_was_typed(walker)


def what_is_gone_keeps_what_was_typed(walker: Walker) -> None:
    """The row was deleted, the server does not answer, or the user may not change it any more. Else it is saved."""
    page = walker.page
    project, gone = ProjectFactory(slug="shop", name="Shop"), ProjectFactory(slug="chat", name="Chat")
    walker.open(f"/admin/projects/project/{project.pk}/change/")
    page.locator("#id_name").fill("Big shop")
    page.clock.fast_forward(A_DAY)
    page.context.set_offline(True)
    walker.press("Save project")
    walker.reads("The server does not answer, so nothing was saved.")
    page.context.set_offline(False)
    walker.faults.clear()  # the browser logs that it is offline
    walker.press("Save project")
    walker.reads("was changed successfully")
    assert Project.objects.get(slug="shop").name == "Big shop"

    walker.open(f"/admin/projects/project/{gone.pk}/change/")
    page.locator("#id_name").fill("Free chat")
    page.clock.fast_forward(A_DAY)
    gone.delete()
    walker.press("Save project")
    walker.reads("This does not exist any more.")
    expect(page.locator("#id_name")).to_have_value("Free chat")

    walker.open(f"/admin/projects/project/{project.pk}/change/")
    page.locator("#id_name").fill("Bigger shop")
    page.clock.fast_forward(A_DAY)
    User.objects.update(is_superuser=False)
    walker.press("Save project")
    walker.reads("so nothing was saved.")
    expect(page.locator("#id_name")).to_have_value("Bigger shop")
    walker.faults.clear()  # the browser logs each refused request


@pytest.mark.django_db(transaction=True)
def test_limits_that_were_added_are_there_after_back_and_forward(walker):
    """A browser restores only what was typed into the fields that came with the page."""
    page = walker.page
    limits = page.locator("#limits-group .form-group:not(.empty-form)")
    walker.enter("ann")
    walker.open("/admin/policies/policy/add/")
    expect(limits).to_have_count(1)
    page.get_by_label("Slug").fill("many")
    page.locator("#id_name").fill("Many")
    page.locator("#limits-group .add-row").last.click()
    for number in range(2):
        page.locator(f"#id_limits-{number}-name").fill(f"limit-{number}")
        page.locator(f"#id_limits-{number}-quota").fill(f"{number + 5}")
        page.locator(f"#id_limits-{number}-window_seconds").fill("1 minute")
    page.wait_for_function("history.state?.limits?.[1]?.includes('limit-1')")

    walker.open("/admin/")
    page.go_back()

    expect(page.locator("#id_limits-1-name")).to_have_value("limit-1")
    expect(limits).to_have_count(2)
    walker.press("Add policy")
    walker.reads("was added successfully")
    found = Policy.objects.get(slug="many").limits.order_by("name")
    assert list(found.values_list("name", "quota")) == [("limit-0", 5), ("limit-1", 6)]
    walker.open("/admin/policies/policy/add/")
    expect(limits).to_have_count(1)
