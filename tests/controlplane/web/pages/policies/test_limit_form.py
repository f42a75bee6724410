"""The limits of a policy's form, each of which is folded to a line that says what it does."""

import json
import re

import pytest
from playwright.sync_api import expect

from controlplane.objects.policies.models import Limit, Policy, columns_of
from controlplane.web.pages.policies.limit_form import LoneLimitForm, fieldsets
from enforcement.model.limit_fields import FIELDS
from tests.controlplane.conftest import PASSWORD
from tests.factories import LimitFactory, PolicyFactory


@pytest.fixture
def policy(db):
    """A policy with three limits, of which the last is in shadow."""
    made = PolicyFactory(slug="chat-free")
    LimitFactory(policy=made, name="per-minute", quota=25, position=0)
    LimitFactory(policy=made, name="images", quota=5, match_path="/v1/images/*", position=1)
    LimitFactory(policy=made, name="per-day", quota=500, window_seconds=86400, mode="shadow", position=2)
    return made


def address(policy) -> str:
    return f"/admin/policies/policy/{policy.pk}/change/"


def lines(html: str) -> list[tuple[bool, str]]:
    """Whether each saved or posted limit is open, and the text of its line without what is hidden."""
    found = []
    for part in html.split('<details class="sg-limit"')[1:-1]:  # the last one is the pattern of a new limit
        line = part[: part.index("</summary>")]
        line = re.sub(r'<span class="material-symbols[^>]*>.*?</span>', "", line)
        line = re.sub(r'<span class="[^"]*sg-hidden">[^<]*</span>', "", line)
        text = re.sub(r"<[^>]*>", " ", line.partition("<summary>")[2])
        found.append((line.startswith(" open"), " ".join(text.split())))
    return found


def posted(policy, **changes) -> dict:
    """The fields that a browser without scripts sends, with changes of the first limit by their names."""
    names = ("id", "name", "quota", "unit", "window_seconds", "match_path", "mode", "algorithm", "consistency")
    fields = {"slug": policy.slug, "name": policy.name, "seen_version": policy.version}
    for index, limit in enumerate(policy.limits.all()):
        row = {name: getattr(limit, name) for name in (*names, "on_store_failure")}
        row |= changes if index == 0 else {}
        fields |= {f"limits-{index}-{name}": value for name, value in row.items()}
    return fields | {"limits-TOTAL_FORMS": 3, "limits-INITIAL_FORMS": 3}


def test_a_folded_limit_is_a_line_in_words(admin_client, policy):
    """Who may do how much per what, and whether it is enforced. A sole limit is open."""
    page = admin_client.get(address(policy)).content.decode()
    assert lines(page) == [
        (False, "per-minute 25 requests per minute for each token or project enforced Edit Fold"),
        (False, "images 5 requests per minute for each token or project on /v1/images/* enforced Edit Fold"),
        (False, "per-day 500 requests per day for each token or project in shadow Edit Fold"),
    ]
    policy.limits.exclude(name="per-minute").delete()
    assert [is_open for is_open, _ in lines(admin_client.get(address(policy)).content.decode())] == [True]


def test_an_error_opens_its_limit(admin_client, policy):
    """The others stay folded, and one that was changed says so."""
    fields = posted(policy, quota=-1) | {"limits-2-quota": 400}
    page = admin_client.post(address(policy), fields).content.decode()
    shown = lines(page)
    assert [is_open for is_open, _ in shown] == [True, False, False]
    assert "not valid changed enforced" in shown[0][1]
    assert [" changed " in line for _, line in shown] == [True, False, True]
    assert "400 requests per day" in shown[2][1]
    assert Limit.objects.get(name="per-day").quota == 500


def with_two_limits() -> Policy:
    policy = PolicyFactory(slug="chat-free")
    LimitFactory(policy=policy, name="per-minute", quota=25, position=0)
    LimitFactory(policy=policy, name="per-day", quota=5000, window_seconds=86400, position=1)
    return policy


@pytest.mark.django_db(transaction=True)
def test_limits_are_unfolded_by_the_keyboard(walker):
    """A changed limit says so while it is folded, and a new one is open."""
    policy = with_two_limits()
    page = walker.page
    walker.enter("ann")
    walker.open(address(policy))
    rows = page.locator("#limits-group .form-group:not(.empty-form)")
    second = walker.limit("per-day")
    quota = page.locator("#id_limits-1-quota")
    expect(quota).to_be_hidden()
    second.press("Enter")
    expect(quota).to_be_visible()
    quota.fill("4000")
    second.press("Enter")
    expect(quota).to_be_hidden()
    expect(second).to_contain_text("4,000 requests per day for each token or project")
    expect(second.get_by_text("changed")).to_be_visible()
    expect(rows.nth(0).get_by_text("changed")).to_be_hidden()
    walker.look("folded", elsewhere=True)

    page.get_by_role("link", name="Add another Limit").press("Enter")
    expect(page.locator("#id_limits-2-name")).to_be_focused()
    page.locator("#id_limits-2-name").fill("burst")
    expect(rows.nth(2).locator("summary").first).to_contain_text("burst")
    page.get_by_role("button", name="Remove this limit").nth(2).press("Enter")
    quota.evaluate("field => { field.closest('.sg-limit').open = true }")
    quota.fill("-4")
    second.press("Enter")
    expect(second.get_by_text("not valid")).to_be_visible()
    walker.press("Save policy")
    expect(quota).to_be_visible()
    expect(page.locator("#id_limits-0-quota")).to_be_hidden()
    walker.look("error-opens")


@pytest.mark.django_db(transaction=True)
def test_what_a_browser_restores_is_said(walker):
    """Whoever comes back to the page finds what was typed. Its line says so, and its fields fit the algorithm."""
    policy = with_two_limits()
    page = walker.page
    walker.enter("ann")
    walker.open(address(policy))
    walker.limit("per-day").click()
    page.locator("#id_limits-1-quota").fill("4000")
    page.locator("#id_limits-1-algorithm").evaluate("field => { field.closest('details').open = true }")
    page.locator("#id_limits-1-algorithm").select_option("token_bucket")
    expect(page.locator("#id_limits-1-burst")).to_be_enabled()
    page.get_by_role("link", name="Audit").click()
    page.wait_for_url("**/auditentry/")
    page.go_back()
    expect(walker.limit("per-day").get_by_text("changed")).to_be_visible()
    expect(walker.limit("per-day")).to_contain_text("4,000 requests per day")
    expect(page.locator("#id_limits-1-burst")).to_be_enabled()


@pytest.mark.django_db(transaction=True)
def test_the_focus_stays_where_the_work_is(walker):
    """A new policy begins at its first field, and who removes a limit goes on at the next one."""
    page = walker.page
    walker.enter("ann")
    walker.open("/admin/policies/policy/add/")
    expect(page.locator("#id_limits-0-name")).to_be_visible()
    expect(page.locator("#id_slug")).to_be_focused()
    page.locator("#id_limits-0-name").fill("one")
    for index, name in ((1, "two"), (2, "three")):
        page.get_by_role("link", name="Add another Limit").press("Enter")
        page.locator(f"#id_limits-{index}-name").fill(name)
    page.get_by_role("button", name="Remove this limit").nth(1).press("Enter")
    expect(walker.limit("three")).to_be_focused()
    for _ in range(2):
        page.get_by_role("button", name="Remove this limit").last.press("Enter")
    expect(page.get_by_role("link", name="Add another Limit")).to_be_focused()


@pytest.mark.django_db(transaction=True)
def test_a_policy_is_changed_without_scripts(browser, walker):
    """The theme hides each page until its script runs. Somebody may be in a hurry where none does."""
    policy = PolicyFactory(slug="chat-free")
    LimitFactory(policy=policy, name="per-minute", quota=25, mode="shadow", position=0)
    LimitFactory(policy=policy, name="per-day", quota=5000, window_seconds=86400, mode="shadow", position=1)
    with browser.new_context(java_script_enabled=False, viewport={"width": 1440, "height": 900}) as context:
        page = context.new_page()
        page.goto(f"{walker.url}/admin/login/?next=/admin/policies/policy/")
        page.get_by_label("Username").fill("ann")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("link", name="chat-free", exact=True).click()
        page.locator(".sg-limit > summary").nth(1).click()
        page.locator("#id_limits-1-quota").fill("400")
        page.get_by_role("button", name="Save policy").click()
        expect(page.get_by_text("was changed successfully")).to_be_visible()
    assert Limit.objects.get(name="per-day").quota == 400


@pytest.mark.django_db
def test_the_form_has_the_fields_of_the_table():
    """Each once, with its label and help, and the script hides those that other fields leave no choice for."""
    placed = [name for _, part in fieldsets() for line in part["fields"] for name in line]
    fields = LoneLimitForm({}, instance=Limit(policy=PolicyFactory())).fields
    assert sorted(placed) == sorted(fields) == sorted(column for field in FIELDS for column in columns_of(field))
    for field in FIELDS:
        if not field.parts:
            assert fields[field.name].label == (field.form_label or field.label)
            assert fields[field.name].help_text.startswith(field.help)
    hidden = {name for name, field in fields.items() if "data-only-if" in field.widget.attrs}
    ruled = {column for field in FIELDS if field.only_if for column in columns_of(field)}
    assert hidden == ruled - {"calendar", "consistency"}
    assert json.loads(fields["burst"].widget.attrs["data-only-if"]) == [["algorithm", ["token_bucket"]]]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("saved", "changes", "reset"),
    [
        ({"unit": "tokens", "weights": {"input": 100}}, {"unit": "requests"}, {"weights": {}}),
        ({"unit": "micros", "unpriced": "charge_as", "charge_as": "gpt"}, {"unit": "pages"}, {"unpriced": "deny"}),
        ({"unit": "micros", "unmetered": "count_only"}, {"unit": "pages"}, {"unmetered": "deny"}),
        ({"algorithm": "token_bucket", "burst": 9}, {"algorithm": "sliding_log"}, {"burst": None}),
    ],
)
def test_what_a_page_does_not_send_is_reset(saved, changes, reset):
    """A field that is hidden now has the default, not the value of the limit before."""
    limit = LimitFactory(**saved)
    names = ("name", "quota", "unit", "window_seconds", "mode", "algorithm", "consistency", "on_store_failure")
    form = LoneLimitForm({name: getattr(limit, name) for name in names} | changes, instance=limit)
    assert form.is_valid(), form.errors
    assert {name: getattr(form.instance, name) for name in reset} == reset
    assert form.instance.charge_as == ""
