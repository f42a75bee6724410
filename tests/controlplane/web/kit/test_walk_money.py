"""A budget of money, from the form of its policy to its override, as somebody at a browser makes it."""

import os

import pytest
from playwright.sync_api import expect

from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit
from tests.controlplane.web.kit.walking import NARROW, WIDE
from tests.factories import LimitFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)
SHOTS = os.environ.get("MONEY_SHOTS", "")


def picture(page, name):
    if SHOTS:
        for scheme in ("light", "dark"):
            page.evaluate(f"document.documentElement.classList.toggle('dark', {str(scheme == 'dark').lower()})")
            for width in (1280, 390):
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(300)
                page.screenshot(path=f"{SHOTS}/{name}-{width}-{scheme}.png", full_page=True)
        page.evaluate("document.documentElement.classList.remove('dark')")
        page.set_viewport_size({"width": 1280, "height": 900})


def test_money_is_typed_as_money(walker, store):
    """The currency is beside the amount, a wrong unit gets advice, and the sentence says what is held."""
    ProjectFactory(slug="web", time_zone="Europe/Berlin")
    page, first = walker.page, "#id_limits-0-"
    walker.enter("ann")
    walker.open("/admin/policies/policy/add/")
    page.locator("#id_slug").fill("budget")
    page.locator("#id_name").fill("Budget")
    page.locator(f"{first}name").fill("usd")
    page.locator(f"{first}quota").fill("500")
    page.locator(f"{first}unit").fill("usd")
    page.locator(f"{first}calendar").select_option("month")
    walker.reads("Did you mean money (USD)?")
    page.locator(f"{first}unit").fill("u" * 32)  # a word that is wider than a narrow page
    page.set_viewport_size(NARROW)
    walker.reads("Nothing has been charged in uuu")
    limit = page.locator(".sg-limit[open]").first
    assert limit.evaluate("it => it.scrollWidth - it.clientWidth") == 0
    page.set_viewport_size(WIDE)
    currency = page.locator(f"{first}quota ~ span")
    expect(currency).to_be_hidden()
    picture(page, "advice")
    page.locator(f"{first}unit").fill("money (USD)")
    expect(currency).to_be_visible()
    expect(currency).to_have_text("USD")
    walker.reads("500.00 USD per calendar month for each token or project")
    page.locator(f"{first}unit").fill("requests")
    expect(currency).to_be_hidden()
    walker.reads("500 requests per calendar month")
    page.locator(f"{first}unit").fill("money (USD)")
    page.locator(f"{first}quota").fill("500,00")
    walker.reads("Allow: Must have commas between thousands only")
    picture(page, "error")
    page.locator(f"{first}quota").fill("1,250.50 USD")
    walker.reads("1,250.50 USD per calendar month")
    picture(page, "policy")
    walker.press("Add policy")
    page.wait_for_url("**/policy/")
    assert Limit.objects.get().quota == 1_250_500_000
    picture(page, "list")


def test_a_shared_budget_is_raised_for_one_team(walker, store):
    """The form has the value, and the list names it."""
    limit = LimitFactory(
        name="team", unit="micros", quota=50_000_000, partition_by=["label.team"], policy__slug="budget"
    )
    project = ProjectFactory(slug="web", policy=limit.policy)
    TokenFactory(project=project, labels={"team": "web"})
    LimitFactory(name="calls", policy=limit.policy, quota=60, position=1)
    page = walker.page
    walker.enter("ann")
    walker.open("/admin/policies/override/add/")
    currency = page.locator("#id_quota ~ span")
    expect(currency).to_be_hidden()
    walker.choose("Limit", "budget/team")
    expect(currency).to_be_visible()
    picture(page, "override-add")
    walker.choose("Limit", "budget/calls")
    expect(currency).to_be_hidden()
    walker.open(f"/admin/policies/override/add/?limit={limit.pk}")
    expect(currency).to_be_visible()
    made = Override.objects.create(
        limit=limit, project=project, partition="label.team = web", quota=75_000_000, reason="launch"
    )
    walker.open(f"/admin/policies/override/{made.pk}/change/")
    expect(page.locator("#id_quota")).to_have_value("75.00")
    expect(page.locator("#id_quota ~ span")).to_have_text("USD")
    picture(page, "override")
    page.locator("#id_quota").fill("80.50")
    walker.press("Save override")
    walker.reads("75.00 USD becomes 80.50 USD")
    picture(page, "override-review")
    walker.open("/admin/policies/override/")
    walker.reads("label.team = web")
    picture(page, "overrides")
    walker.open(f"/admin/policies/override/raise/project/{project.pk}/")
    expect(page.locator("#id_quota ~ span")).to_have_text("USD")
    picture(page, "raise")
    page.get_by_role("link", name="Raise it for one value only").click()
    walker.reads("Only for the value")
