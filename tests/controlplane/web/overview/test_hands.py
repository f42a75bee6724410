"""The lines at the top of the first page: who sees them, who answers them, and when they come back."""

import json
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone
from playwright.sync_api import expect

from controlplane.changes.audit.models import AuditEntry
from controlplane.operations.alerts import events
from controlplane.operations.alerts.findings import AlertFinding, Found
from controlplane.operations.alerts.models import Acknowledgement, AlertEvent
from controlplane.operations.alerts.rule_kinds import USAGE
from controlplane.operations.health.conditions import latest
from controlplane.operations.webhooks.models import Delivery
from controlplane.web.overview.hands import end_of, firing_badge
from tests.controlplane.conftest import PASSWORD
from tests.controlplane.web.kit.walking import Walker
from tests.factories import AlertRuleFactory, DestinationFactory, MembershipFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db
URL, ANSWER = "/admin/needs-a-hand/", "/admin/needs-a-hand/answer/"


@pytest.fixture
def project():
    return ProjectFactory(slug="apollo")


@pytest.fixture
def rule(project):
    return AlertRuleFactory(kind=USAGE, project=project, cool_down_seconds=0)


@pytest.fixture
def fire(rule, project):
    """Let the alert fire at a level, or none, which is its end."""

    def look(level, now=None):
        latest.forget()
        findings = [AlertFinding("day", f"api/day has reached {level} %", "api/day is below 50 % again", level)]
        one = [AlertFinding(**{**_fields(finding), "project": project.pk}) for finding in findings if level]
        return events.decide(rule, Found(one), now or timezone.now())

    return look


def _fields(finding):
    return {name: getattr(finding, name) for name in AlertFinding.__dataclass_fields__}


def shown(client):
    """Return the faults of the lines, and of those that are answered by what was said."""
    hands = client.get("/admin/").context["hands"]
    answered = {name: [line.condition.fault for line in lines] for name, lines in hands["answered"]}
    faults = [line.condition.fault for line in (*hands["lines"], *hands["rest"])]
    return [one for one in faults if one.startswith("api")], answered


def subject_of(rule):
    return f"alert|{rule.pk}|day"


def answer(client, rule, deed, **more):
    return client.post(ANSWER, {"subject": subject_of(rule), "deed": deed, **more}, follow=True)


def test_an_acknowledged_alert_leaves_the_lines(as_operator, fire, rule):
    """Everyone sees who takes care of it, and the audit has it."""
    fire(80)
    assert shown(as_operator) == (["api/day has reached 80 %"], {})

    answer(as_operator, rule, "acknowledged")

    assert shown(as_operator) == ([], {"acknowledged": ["api/day has reached 80 %"]})
    assert "ann since" in as_operator.get("/admin/").content.decode()
    assert AuditEntry.objects.get().action == "acknowledgement.create"


def test_it_comes_back_if_it_gets_worse(as_operator, fire, rule):
    """Or if somebody shows it again."""
    fire(80)
    answer(as_operator, rule, "acknowledged")
    answer(as_operator, rule, "open")
    assert shown(as_operator)[0] == ["api/day has reached 80 %"]
    answer(as_operator, rule, "acknowledged")

    fire(100)

    assert shown(as_operator) == (["api/day has reached 100 %"], {})


def test_an_acknowledgement_ends_with_what_it_was_of(as_operator, fire, rule):
    """The next time is news."""
    fire(80)
    answer(as_operator, rule, "acknowledged")
    fire(None)
    assert Acknowledgement.objects.count() == 0
    fire(80)

    assert shown(as_operator)[0] == ["api/day has reached 80 %"]


def test_a_mute_holds_until_its_end(as_operator, fire, rule):
    """Also if the alert ends and begins again meanwhile."""
    fire(80)
    answer(as_operator, rule, "muted", end="hour")
    fire(None)
    fire(80)
    assert shown(as_operator) == ([], {"muted": ["api/day has reached 80 %"]})

    Acknowledgement.objects.update(until=timezone.now())

    assert shown(as_operator)[0] == ["api/day has reached 80 %"]


def test_nobody_is_told_of_what_is_answered(as_operator, fire, rule, project):
    """Unless it gets worse. Who acknowledged it hears that it is over; who muted it does not."""
    rule.destinations.add(DestinationFactory(project=project))
    fire(50)
    answer(as_operator, rule, "acknowledged")
    Acknowledgement.objects.update(weight=80)
    told = Delivery.objects.count

    fire(80)
    assert told() == 1
    fire(100)
    assert told() == 2
    fire(None)
    assert told() == 3
    fire(50)
    answer(as_operator, rule, "muted", end="resolved")
    fire(None)
    assert told() == 4


@pytest.mark.parametrize(
    ("given", "rule_of_it"),
    [
        ({"end": "other", "until": "soon"}, "Must be a time"),
        ({"end": "other", "until": "2020-01-01T08:00"}, "at most 7 days from now"),
        ({"end": "other", "until": "2199-01-01T08:00"}, "at most 7 days from now"),
        ({"end": "never"}, "Must be a time"),
    ],
)
def test_a_mute_always_has_an_end(as_operator, fire, rule, given, rule_of_it):
    """At most a week ahead."""
    fire(80)

    page = answer(as_operator, rule, "muted", **given)

    assert rule_of_it in page.content.decode()
    assert Acknowledgement.objects.count() == 0


def test_what_is_over_meanwhile_is_not_answered(as_operator, rule):
    """Somebody pressed the button of a line that is gone."""
    page = answer(as_operator, rule, "acknowledged")

    assert "That is over meanwhile" in page.content.decode()
    assert Acknowledgement.objects.count() == 0


@pytest.mark.parametrize(("role", "status"), [("viewer", 403), ("editor", 200), (None, 200)])
def test_members_answer_for_their_projects_only(client, fire, rule, project, role, status):
    """A viewer sees the line without buttons, and who is in another project sees none."""
    fire(80)
    user = UserFactory(username="mia")
    MembershipFactory(user=user, project=project if role else ProjectFactory(), role=role or "owner")
    client.force_login(user)

    lines = shown(client)[0]
    buttons = 'value="acknowledged"' in client.get(URL).content.decode()
    response = answer(client, rule, "acknowledged")

    assert lines == ([] if role is None else ["api/day has reached 80 %"])
    assert (buttons, response.status_code) == (role == "editor", status)
    assert Acknowledgement.objects.exists() == (role == "editor")


def test_a_member_sees_nothing_of_the_installation(client, project):
    """The test has no store, which is for operators to know. Nor is all well, as not everything can be read."""
    client.force_login(MembershipFactory(project=project, role="owner").user)

    page = client.get(URL).content.decode()

    assert "The store" not in page
    assert "Nothing known needs a hand" in page


def test_all_is_well_only_if_nothing_needs_a_hand(as_operator, store, fire, rule):
    """Also not while somebody takes care of something. It says what was looked at."""
    assert "All is well" in as_operator.get(URL).content.decode()
    assert "the store, what waits to be published" in as_operator.get(URL).content.decode()
    fire(80)
    answer(as_operator, rule, "acknowledged")

    page = as_operator.get(URL).content.decode()

    assert "All is well" not in page
    assert "1 acknowledged" in page


def test_the_lines_cost_few_queries(as_operator, fire, django_assert_max_num_queries):
    """One answer of the process is for all tabs."""
    fire(80)
    as_operator.get(URL)

    with django_assert_max_num_queries(5):
        response = as_operator.get(URL)

    assert "api/day has reached 80 %" in response.content.decode()
    assert response["Cache-Control"].startswith("max-age=0")


def test_the_menu_counts_the_alerts_that_fire(as_operator, fire, rule, rf):
    """Without those that somebody has answered."""
    request = rf.get("/admin/")
    request.user = UserFactory(operator=True)
    fire(80)
    assert firing_badge(request) == "1"
    answer(as_operator, rule, "acknowledged")
    assert firing_badge(request) == ""
    request.user = UserFactory()
    assert firing_badge(request) == ""


@pytest.mark.parametrize(
    ("at", "end"), [("2026-12-08T03:12", "2026-12-08T08:00"), ("2026-12-08T08:00", "2026-12-09T08:00")]
)
def test_the_morning_is_that_of_the_user(at, end):
    """The next eight o'clock."""
    zone = ZoneInfo("Europe/Berlin")
    with timezone.override(zone):
        found = end_of("morning", datetime.fromisoformat(at).replace(tzinfo=zone))

    assert found == datetime.fromisoformat(end).replace(tzinfo=zone)


@pytest.mark.django_db(transaction=True)
def test_a_line_comes_and_is_muted_without_a_reload(walker: Walker, store):
    """Within ten seconds, and by the keyboard alone."""
    walker.log_in("ann", PASSWORD)
    walker.open("/admin/")
    walker.reads("All is well")
    walker.page.evaluate("window.isSamePage = true")
    project = ProjectFactory(slug="apollo")
    rule = AlertRuleFactory(kind=USAGE, project=project)
    events.decide(rule, Found([AlertFinding("day", "api/day has reached 80 %", project=project.pk)]), timezone.now())

    line = walker.page.get_by_text("api/day has reached 80 %").first
    expect(line).to_be_visible(timeout=10_000)
    assert walker.page.evaluate("window.isSamePage")
    mute = walker.page.get_by_label("Mute: api/day has reached 80 %")
    mute.press("Enter")
    expect(walker.page.get_by_label("For 1 hour")).to_be_visible()
    walker.page.keyboard.press("Escape")
    expect(mute).to_be_focused()
    walker.glance("needs-a-hand")
    mute.press("Enter")
    walker.page.get_by_role("button", name="Mute", exact=True).press("Enter")
    walker.reads("1 muted")


def test_more_than_five_are_folded(as_operator, rule, project):
    """The rest is named in one line."""
    for number in range(9):
        AlertEvent.objects.create(
            rule=rule, kind=USAGE, subject=f"s{number}", title=f"api/{number} fires", at=timezone.now(), project=project
        )

    hands = as_operator.get("/admin/").context["hands"]

    assert (len(hands["lines"]), len(hands["rest"]), hands["rest_more"]) == (5, 5, 2)
    assert json.dumps(hands["rest_names"]).count("fires") == 3


def test_an_end_of_another_name_is_refused():
    """Whatever a form sends."""
    with pytest.raises(ValidationError):
        end_of("tomorrow", timezone.now() + timedelta(0))
