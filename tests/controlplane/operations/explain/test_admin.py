"""The page that explains a denial, as operators and members of a project use it."""

import re
from datetime import UTC, datetime, timedelta
from itertools import product
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.objects.overrides.actions import save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.models import Membership
from controlplane.traffic.stream.batches import Row
from controlplane.traffic.usage import rollup
from controlplane.web.kit.times import ZONE_COOKIE
from controlplane.web.pages.overrides.links import raise_url
from tests.controlplane.operations.explain.conftest import ANN, set_quota
from tests.factories import ProjectFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)
URL = "/admin/explain/"


@pytest.fixture
def member(client) -> object:
    """``member(project)``: the session of somebody who may only read that project."""

    def log_in(project):
        user = User.objects.create_user("vera", password="x", is_staff=True)
        Membership.objects.create(user=user, project=project, role="viewer")
        client.force_login(user)
        return client

    return log_in


def test_the_page_asks_for_an_id_or_a_token(admin_client):
    """And is in the menu."""
    page = admin_client.get(URL).content.decode()

    assert "Decision id" in page
    assert "Explain a denial" in admin_client.get("/admin/").content.decode()


def test_who_has_no_id_chooses_among_the_latest_denials(admin_client, denied, member):
    """Of the projects that one may see. An explanation takes their place."""
    page = admin_client.get(URL).content.decode()
    assert "free / per-day" in page
    link = rf'<a class="text-link" href="{URL}\?decision=([\w.-]+)" aria-label="[^"<>]* of kestrel [^"<>]*">Explain</a>'
    assert re.findall(link, page) == [denied.decision]
    assert "Latest denials" not in admin_client.get(f"{URL}?decision={denied.decision}").content.decode()

    client = member(ProjectFactory(slug="other"))
    page = client.get(URL).content.decode()
    assert "No denial of the last 24 hours is in the sample." in page
    assert "kestrel" not in page
    Membership.objects.create(user=User.objects.get(username="vera"), project=denied.token.project, role="viewer")
    assert denied.decision in client.get(URL).content.decode()


def test_a_decision_is_explained_in_a_sentence_and_a_table(admin_client, denied):
    """With the quota of then, after a change."""
    set_quota(denied.policy, 20)

    page = admin_client.post(URL, {"decision": denied.decision}).content.decode()

    assert "kestrel had used up 2 requests per day of free / per-day." in page
    assert "Its quota is 20 now." in page
    assert "2 of 2" in page
    assert "2 of 20" in page
    assert "by the policy" in page


def test_who_may_raise_the_limit_that_denied_finds_the_button(admin_client, denied, member):
    """A viewer of the project does not."""
    url = raise_url(denied.token)

    assert f'href="{url}"' in admin_client.post(URL, {"decision": denied.decision}).content.decode()
    page = member(denied.token.project).post(URL, {"decision": denied.decision}).content.decode()
    assert "had used up" in page
    assert url not in page


def test_each_denial_of_the_sample_links_to_its_explanation(admin_client, denied):
    """A decision id is no secret, so it may be in an address."""
    link = f"{URL}?decision={denied.decision}"

    assert link in admin_client.get(reverse("admin:usage_deniedrequest_changelist")).content.decode()
    assert "had used up" in admin_client.get(link).content.decode()


def test_a_secret_is_sent_in_a_body_and_comes_back_nowhere(admin_client, denied, caplog):
    """Neither in the page, nor in the address, nor in a log. In an address it is not even read."""
    posted = admin_client.post(URL, {"token": denied.secret})
    wrong = admin_client.post(URL, {"token": denied.secret[:-1] + "x"})
    asked = admin_client.get(URL, {"token": denied.secret})

    assert posted.context["found"].case.token == denied.token
    assert "no-store" in posted["Cache-Control"]
    for response in (posted, wrong, asked):
        assert denied.secret[:-1] not in response.content.decode()
    assert "found" not in asked.context
    assert denied.secret not in caplog.text


FIELDS = ["token", "decision", "request", "attributes"]
PASTED = ["https://api.example/?key={}&x=1", "Bearer {}", '"{}"', "{}"]


@pytest.mark.proof
@pytest.mark.parametrize(("field", "pasted"), list(scale(zip, product)(FIELDS, PASTED)))
def test_a_secret_that_is_pasted_anyhow_comes_back_nowhere(admin_client, denied, field, pasted):
    """With what stood around it, or into the wrong field. In its own field it is found."""
    text = pasted.format(denied.secret)
    body = {"token": "kestrel", field: f"authorization = {text}" if field == "attributes" else text}
    if field == "decision":
        del body["token"]

    page = admin_client.post(URL, body)

    assert denied.secret[12:] not in page.content.decode()
    assert field != "token" or page.context["found"].case.token == denied.token


def test_a_secret_in_place_of_a_decision_is_not_repeated(api, denied):
    """Not in the error of REST either, which logs may keep."""
    answer = api("POST", "explain", {"decision": f"Bearer {denied.secret[:30]}"})

    assert answer.status_code == 400
    assert denied.secret[12:30] not in answer.content.decode()
    assert denied.secret[:12] in answer.content.decode()


def test_a_member_explains_the_denials_of_their_project(member, denied):
    """Without the names of instances, which all projects share."""
    page = member(denied.token.project).post(URL, {"decision": denied.decision}).content.decode()

    assert "had used up" in page
    assert "proxy-1" not in page


def test_a_member_of_another_project_learns_nothing(member, denied):
    """A decision of others, a token of others and a secret of others are as if they did not exist."""
    client = member(ProjectFactory(slug="other"))

    for body in ({"decision": denied.decision}, {"token": denied.token.pk}, {"token": denied.secret}):
        response = client.post(URL, body)
        assert "found" not in response.context
        assert "kestrel" not in response.content.decode()


def test_staff_without_a_project_may_not_ask(client, denied):
    """They see nothing of any project."""
    client.force_login(User.objects.create_user("stan", password="x", is_staff=True))

    assert client.get(URL).status_code == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"decision": "", "token": ""}, "decision"),
        ({"decision": "dec_x", "token": "kestrel"}, "decision"),
        ({"decision": "dec_x"}, "decision"),
        ({"token": "nobody"}, "token"),
        ({"token": "x", "at": "2200-01-01T00:00"}, "at"),
        ({"token": "x", "attributes": "ip"}, "attributes"),
        ({"token": "x", "attributes": "label.team = red"}, "attributes"),
        ({"token": "x", "request": "P0ST /v1"}, "request"),
    ],
)
def test_wrong_questions_are_refused_at_their_field(admin_client, body, field):
    """With a sentence, and no explanation."""
    response = admin_client.post(URL, body)

    assert response.context["form"].errors.keys() == {field}
    assert "found" not in response.context


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York"])
def test_a_time_of_another_zone_finds_the_hours_and_days_of_utc(admin_client, issue, zone):
    """A half hour or a local midnight would count some usage twice."""
    token, _ = issue({"quota": 5_000, "window_seconds": 7 * 86_400})
    now = timezone.now()
    at = (now - timedelta(hours=20)).replace(minute=47, second=0, microsecond=0)
    names = (token.project_id, token.pk, token.policy_id, "per-day", "requests")
    times = [at - timedelta(minutes=10 * number) for number in range(1_200)]
    rollup.add([Row(one, names, (1, 0, 0, 1)) for one in times], now)
    seconds = 7 * 86_400
    start = datetime.fromtimestamp(at.timestamp() // seconds * seconds, UTC)
    used = sum(one >= start for one in times)
    admin_client.cookies[ZONE_COOKIE] = zone

    local = at.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%dT%H:%M")
    page = admin_client.post(URL, {"token": token.pk, "at": local}).content.decode()

    assert f"{used:,} of 5,000" in page


def test_the_end_of_an_override_is_in_the_zone_of_the_user(admin_client, denied):
    """With UTC beside, because the answer to send is for somebody who may be in another place."""
    limit, ends_at = denied.policy.limits.get(name="per-day"), datetime(2099, 11, 27, 17, 0, tzinfo=UTC)
    with change(actor=ANN) as tx:
        save_override(tx, Override(limit=limit, token=denied.token, quota=60, reason="load test", ends_at=ends_at))
    admin_client.cookies[ZONE_COOKIE] = "Europe/Berlin"

    page = admin_client.post(URL, {"decision": denied.decision}).content.decode()

    assert "An override gives it 60 until 2099-11-27 18:00 Europe/Berlin (17:00 UTC)" in page
    assert "By now your limit is 60, until 2099-11-27 18:00 Europe/Berlin (17:00 UTC)." in page
