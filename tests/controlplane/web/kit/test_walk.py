"""The admin as a newcomer meets it, in a real browser, before a real server and a real store."""

import json
import re
import time

import pytest
import redis
from django.utils import timezone
from playwright.sync_api import Route, expect

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import publisher
from controlplane.traffic.fleet.heartbeats import live_instances
from controlplane.traffic.usage.drain import drain
from enforcement import Limiter
from tests.controlplane.conftest import PASSWORD
from tests.controlplane.web.kit.walking import NARROW, WIDE, Walker
from tests.factories import (
    LimitFactory,
    ProjectFactory,
    TokenFactory,
)
from tests.scale import scale

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]


def make_project(walker: Walker) -> None:
    walker.open("/admin/projects/project/add/")
    walker.page.get_by_label("Slug").fill("checkout")
    walker.page.get_by_label("Name").fill("Checkout service")
    walker.look("project-form", elsewhere=True)
    walker.press("Add project")
    walker.reads("Published as revision 1.")


def unfold(walker: Walker, index: int, part: str) -> None:
    """Open a folded part of a limit."""
    row = walker.page.locator("#limits-group .form-group").filter(has=walker.page.locator(f"#id_limits-{index}-name"))
    row.locator("summary", has_text=part).click()


def make_policy(walker: Walker) -> None:
    walker.open("/admin/policies/policy/add/")
    walker.page.locator("#id_slug").fill("starter")
    walker.page.locator("#id_name").fill("Starter plan")
    walker.page.locator("#id_limits-0-name").fill("per-minute")
    unfold(walker, 0, "How it counts")
    walker.page.locator("#id_limits-0-algorithm").select_option("sliding_window")
    walker.page.locator("#id_limits-0-quota").fill("1")
    walker.page.locator("#id_limits-0-window_seconds").fill("1 minute")
    walker.page.locator("#id_limits-0-mode").select_option("enforce")
    walker.reads("1 request per minute for each token or project with this policy, counted in a sliding window.")
    walker.look("policy-form", elsewhere=True)
    walker.press("Add policy")
    walker.reads("Published as revision 2.")
    walker.look("policies", elsewhere=True)


def make_token(walker: Walker) -> str:
    walker.open("/admin/projects/token/add/")
    walker.choose("Project", "checkout")
    walker.page.locator("#id_name").fill("ci")
    walker.choose("Policy", "starter")
    walker.look("token-form", elsewhere=True)
    walker.press("Add token")
    walker.reads("Published as revision 3.")
    secret = walker.page.locator("#secret").inner_text()
    walker.look("secret")
    walker.page.get_by_label("I have stored the secret").check()
    walker.page.get_by_role("link", name="Go to the token").click()
    walker.reads("sg_live_")
    assert secret not in walker.page.content()
    walker.look("token", elsewhere=True)
    return secret


def all_run(revision: int) -> None:
    """Wait until there is a live instance and each one reports *revision*. A page that is open does not change."""
    deadline = time.monotonic() + 30
    while not (fleet := live_instances()) or any(instance.revision < revision for instance in fleet):
        assert time.monotonic() < deadline, [(instance.id, instance.revision) for instance in fleet]
        time.sleep(0.02)


def test_from_an_empty_installation_to_the_first_denial(walker, store, client_of_store):
    """Project, policy, token, published, enforced, and the denial is seen on the first page."""
    walker.open("/admin/login/")
    walker.look("login")
    walker.log_in("ann", PASSWORD)
    walker.page.wait_for_url("**/admin/")
    walker.look("first-steps", elsewhere=True)
    make_project(walker)
    make_policy(walker)
    secret = make_token(walker)

    document = json.loads(client_of_store.hget("sg:{doc}:documents", f"policy:{Policy.objects.get().pk}"))
    assert [limit["quota"] for limit in document["limits"]] == [1]

    with Limiter(store.url, instance="proxy-1") as limiter:
        assert [limiter.check(secret).allowed for _ in range(2)] == [True, False]
        all_run(3)
        walker.open("/admin/publishing/revision/")
        walker.reads("1 of 1 instance has it")
        walker.look("revisions", elsewhere=True)
        walker.open("/admin/publishing/revision/2/change/")
        walker.reads("same or later")
        walker.look("revision", elsewhere=True)
    drain(timezone.now(), redis.Redis.from_url(store.url, decode_responses=True, protocol=2))

    with Limiter(store.url, instance="proxy-2"):
        all_run(3)
        walker.open("/admin/")
        denied = walker.page.locator(".sg-kpis li", has_text="Denied").locator(".sg-v").first
        expect(denied).to_have_text("1")
        walker.reads("1 denied")
        walker.reads("proxy-2")
        walker.look("dashboard", elsewhere=True)
        walker.open("/admin/fleet/instance/")
        walker.look("instances", elsewhere=True)


def test_the_documentation_of_the_api_runs_under_its_policy(walker):
    """Nothing that the page needs is refused, and nothing is asked of another host."""

    def first_operation(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        document["paths"] = dict(scale(list(document["paths"].items())[:1], list(document["paths"].items())))
        route.fulfill(response=answer, json=document)

    walker.page.route("**/api/v1/openapi.json*", first_operation)
    walker.open("/api/v1/docs/")

    expect(walker.page.locator(".swagger-ui .opblock").first).to_be_visible()


def test_the_menu_and_the_filters_work_by_keyboard_on_a_narrow_screen(walker):
    """What the theme makes of clickable spans can be reached, named and pressed."""
    walker.enter("ann")
    walker.open("/admin/projects/token/")
    walker.page.set_viewport_size({"width": 320, "height": 720})
    toggle = walker.page.get_by_role("button", name="Open or close the menu")

    toggle.focus()
    walker.page.keyboard.press("Enter")
    expect(walker.page.get_by_role("link", name="Policies")).to_be_visible()
    walker.look("menu")


def test_the_form_of_a_limit_asks_only_what_means_something(walker, store):
    """Fields follow the algorithm, what was typed survives a removed row, and both limits are saved at once."""
    policy = LimitFactory(name="per-minute", quota=10, policy__slug="starter").policy
    walker.enter("ann")
    walker.open(f"/admin/policies/policy/{policy.pk}/change/")
    page, first = walker.page, "#id_limits-0-"
    walker.reads("fixed window, exact over the fleet")
    unfold(walker, 0, "How it counts")
    expect(page.locator(f"{first}burst")).to_be_hidden()
    page.locator(f"{first}calendar").select_option("day")
    page.locator(f"{first}algorithm").select_option("token_bucket")
    expect(page.locator(f"{first}calendar")).to_have_value("")
    page.locator(f"{first}burst").fill("50")
    walker.reads("refilled at a steady rate, with bursts of up to 50.")

    for index in (1, 2):
        page.get_by_role("link", name="Add another Limit").click()
        page.locator(f"#id_limits-{index}-name").fill(f"new-{index}")
    page.get_by_role("button", name="Remove this limit").nth(1).press("Enter")
    expect(page.locator("#id_limits-1-name")).to_have_value("new-2")
    page.locator("#id_limits-1-calendar").select_option("month")
    expect(page.locator("#id_limits-1-window_seconds")).to_be_hidden()
    expect(page.locator("#id_limits-1-algorithm")).to_have_value("fixed_window")
    unfold(walker, 1, "How it counts")
    page.locator("#id_limits-1-time_zone").fill("Europe/Berlin")
    page.locator("#id_limits-1-quota").fill("100000")
    walker.reads("100,000 requests per calendar month")
    page.locator("#try-path").fill("/v1/hello")
    walker.reads("2 of 2 limits match.")
    walker.look("two-limits", elsewhere=True)
    walker.press("Save policy")
    walker.reads("was changed successfully. Published as revision 1.")

    limits = Limit.objects.values_list("name", "algorithm", "burst", "calendar", "time_zone")
    assert list(limits) == [
        ("per-minute", "token_bucket", 50, "", "UTC"),
        ("new-2", "fixed_window", None, "month", "Europe/Berlin"),
    ]


def test_the_form_of_a_limit_asks_for_tokens_and_money_what_its_unit_has(walker, store):
    """Fields follow the unit and the rule, and what is hidden is not sent."""
    rules = {"charge_as": "gpt-4o", "unpriced": "charge_as"}
    policy = LimitFactory(name="usd", unit="micros", policy__slug="starter", **rules).policy
    walker.enter("ann")
    walker.open(f"/admin/policies/policy/{policy.pk}/change/")
    page, first = walker.page, "#id_limits-0-"
    names = ("weights", "unpriced", "charge_as", "unmetered")

    def asked():
        return [name for name in names if page.locator(f"{first}{name}").is_enabled()]

    assert asked() == ["unpriced", "charge_as", "unmetered"]
    page.get_by_text("Tokens and money").first.click()
    expect(page.locator(f"{first}weights")).to_be_hidden()
    expect(page.locator(f"{first}charge_as")).to_be_visible()
    page.locator(f"{first}unpriced").select_option("count_only")
    expect(page.locator(f"{first}charge_as")).to_be_hidden()
    page.locator(f"{first}unit").fill("tokens")
    page.locator(f"{first}unit").blur()
    walker.reads("Allow: Must be an integer such as 1,200, got '0.0001'.")
    page.locator(f"{first}quota").fill("100")
    expect(page.locator(f"{first}weights")).to_be_visible()
    assert asked() == ["weights", "unmetered"]
    page.locator(f"{first}weights").fill("cached_input = 100")
    walker.reads("cached_input tokens weighed 0.1.")
    an_error_is_told_at_its_field(walker)
    page.locator(f"{first}window_seconds").fill("1 minute")
    walker.press("Save policy")
    walker.reads("was changed successfully. Published as revision 1.")

    limit = Limit.objects.get()
    assert (limit.unit, limit.weights) == ("tokens", {"cached_input": 100})
    assert (limit.unpriced, limit.charge_as) == ("deny", "")


def an_error_is_told_at_its_field(walker: Walker) -> None:
    """Also to those who do not see where it stands."""
    window = walker.page.locator("#id_limits-0-window_seconds")
    window.fill("0")
    walker.reads("Length: Must last between a second and a year.")
    walker.press("Save policy")
    expect(window).to_have_attribute("aria-invalid", "true")
    expect(window).to_have_accessible_description(re.compile("Such as 30 seconds.* Must last between a second and"))
    walker.look("error", elsewhere=True)


@pytest.mark.skipif(scale(True, False), reason="test_parts.py watches counters, and test_tasks.py resets one")
def test_a_counter_is_watched_and_reset(walker, store):
    """The page of a token shows what is used as it happens; a reset has a reason and works at once."""
    limit = LimitFactory(name="per-hour", quota=2, window_seconds=3600, policy__slug="starter")
    token = TokenFactory(policy=limit.policy, name="ci")
    publisher.publish_all()
    walker.enter("ann")
    with Limiter(store.url) as limiter:
        walker.open(f"/admin/projects/token/{token.pk}/change/")
        walker.reads("0 of 2 requests (0 %)")
        assert [limiter.check(token.secret).allowed for _ in range(3)] == [True, True, False]
        walker.reads("2 of 2 requests (100 %)")
        walker.look("live", elsewhere=True)

        walker.press("Pause updates")
        walker.page.get_by_role("link", name="Reset counters").click()
        walker.page.locator("#dialog input[name=reason]").fill("support call")
        walker.look("reset-dialog")
        walker.press("Reset counters")
        walker.reads("1 counter of ci")
        walker.reads("0 of 2 requests (0 %)")
        assert limiter.check(token.secret).allowed

    assert AuditEntry.objects.get().reason == "support call"


def test_a_long_name_stays_within_the_search(walker, store):
    """Names may have 200 characters without a blank. The arrow of a result stays in sight, on a narrow screen too."""
    ProjectFactory(slug="long", name="x" * 200)
    walker.enter("ann")
    walker.open("/admin/")
    walker.page.keyboard.press("Control+k")
    walker.page.locator("#search-input-command").fill("long")
    walker.page.keyboard.press("Control")  # the palette searches once a key goes up
    result = walker.page.locator("#command-results-list a").first
    for size in (WIDE, NARROW):
        walker.page.set_viewport_size(size)
        expect(result).to_be_visible()
        box, arrow = result.bounding_box(), result.locator("> :last-child").bounding_box()
        assert box["x"] + box["width"] <= size["width"]
        assert arrow["x"] + arrow["width"] <= box["x"] + box["width"]


@pytest.mark.skipif(scale(True, False), reason="test_forms.py saves after somebody else, too")
def test_a_second_editor_is_told_who_was_faster(walker, store):
    """Nothing is saved over a change that its author has not seen."""
    project = ProjectFactory(slug="checkout", name="Checkout")
    walker.enter("ann")
    walker.open(f"/admin/projects/project/{project.pk}/change/")
    with change(actor=Actor("bob", "api")) as tx:
        before = project.as_record()
        project.name = "Till"
        project.save()
        tx.updated(project, before)

    walker.page.locator("#id_name").fill("Check-out")
    walker.press("Save project")
    walker.reads("bob changed this project")
    walker.reads("Name: Checkout → Till")
    walker.look("conflict")
    assert walker.page.locator("#id_name").input_value() == "Check-out"
    walker.press("Save project")
    walker.reads("was changed successfully. Published as revision")

    project.refresh_from_db()
    assert project.name == "Check-out"


@pytest.mark.skipif(scale(True, False), reason="test_tasks.py rotates and revokes tokens, too")
def test_a_token_is_rotated_and_revoked_in_dialogs(walker, store):
    """Both ask for a reason, and the new secret has a page of its own."""
    walker.log_in("ann", PASSWORD)
    make_project(walker)
    walker.open("/admin/projects/token/add/")
    walker.choose("Project", "checkout")
    walker.page.locator("#id_name").fill("ci")
    walker.press("Add token")
    walker.page.get_by_label("I have stored the secret").check()
    walker.page.get_by_role("link", name="Go to the token").click()

    walker.page.get_by_role("link", name="Rotate").click()
    walker.page.get_by_label("One hour").check()
    walker.page.get_by_label("Reason", exact=False).last.fill("quarterly")
    walker.look("rotate-dialog")
    walker.press("Create the new secret")
    walker.reads("stays valid until")
    walker.look("rotated")
    new = Token.objects.order_by("-id").first()
    assert f"/admin/projects/token/{new.pk}/change/" in walker.page.url.replace("_5F", "_")

    walker.page.get_by_label("I have stored the secret").check()
    walker.page.get_by_role("link", name="Go to the token").click()
    walker.page.get_by_role("link", name="Revoke").click()
    walker.press("Revoke token")
    expect(walker.page.locator("#dialog")).to_contain_text("This field is required")
    walker.page.locator("#dialog input[name=reason]").fill("leaked in a log")
    walker.press("Revoke token")
    walker.reads("is revoked. Published as revision 4.")

    assert AuditEntry.objects.get(action="token.revoke").reason == "leaked in a log"
