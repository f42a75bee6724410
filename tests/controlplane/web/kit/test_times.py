"""Times in the zone of the user, with UTC beside, in pages and in forms."""

import re
from datetime import UTC, datetime

import pytest
from django.utils import timezone

from controlplane.objects.overrides.models import Override
from controlplane.web.kit.times import ZONE_COOKIE, exact, zone_of
from tests.controlplane.web.kit.reviews import enforce
from tests.factories import OverrideFactory, UsageRowFactory
from tests.repository import ROOT

NOON = datetime(2026, 11, 24, 12, 0, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("UTC", "2026-11-24 12:00 UTC"),
        ("Europe/Berlin", "2026-11-24 13:00 Europe/Berlin (12:00 UTC)"),
        ("Pacific/Auckland", "2026-11-25 01:00 Pacific/Auckland (2026-11-24 12:00 UTC)"),
    ],
)
def test_a_time_has_one_form(zone, text):
    """The date in UTC is shown only if it is another one."""
    with timezone.override(zone_of(zone)):
        assert exact(NOON) == text


@pytest.mark.parametrize("name", ["", "Nope/Nowhere", "../../etc/passwd", "Europe/", "x" * 500, "a\0b", "Europe"])
def test_a_zone_that_is_none_is_utc(name):
    """The cookie is the client's."""
    assert zone_of(name).key == "UTC"


@pytest.mark.django_db
def test_a_form_reads_and_shows_the_zone_of_the_user(admin_client):
    """18:00 in Berlin is 17:00 UTC, and comes back as 18:00."""
    override = OverrideFactory()
    admin_client.cookies[ZONE_COOKIE] = "Europe/Berlin"
    path = f"/admin/policies/override/{override.pk}/change/"
    form = admin_client.get(path).context["adminform"].form
    posted = {"limit": override.limit.pk, "token": override.token.pk, "quota": 7, "reason": "A launch"}

    fields = posted | {"seen_version": form["seen_version"].value(), "ends_at": "2099-11-27T18:00"}
    enforce(admin_client, admin_client.post(path, fields))

    assert Override.objects.get().ends_at == datetime(2099, 11, 27, 17, 0, tzinfo=UTC)
    page = admin_client.get(path).text
    assert 'value="2099-11-27T18:00"' in page
    assert "In Europe/Berlin." in page


@pytest.mark.django_db
def test_a_list_shows_both_times(admin_client):
    """The local one first, and UTC below."""
    UsageRowFactory(period="minute", at=NOON)
    admin_client.cookies[ZONE_COOKIE] = "Europe/Berlin"

    page = admin_client.get("/admin/usage/usagerow/?period=minute").text

    assert '2026-11-24 13:00<span class="sg-help sg-block">12:00 UTC</span>' in page


@pytest.mark.django_db
def test_rest_does_not_know_the_cookie(api, client):
    """Programs get UTC."""
    OverrideFactory(ends_at=datetime(2099, 11, 27, 17, 0, tzinfo=UTC))

    assert api("GET", "overrides", cookie=f"{ZONE_COOKIE}=Europe/Berlin").json()["results"][0]["ends_at"].endswith("Z")


def test_no_template_calls_a_local_time_utc():
    """``|date`` shows the zone of the user, so a template writes times with the tags of this module."""
    pages = list((ROOT / "templates" / "admin").rglob("*.html"))
    wrong = [
        f"{path.name}: {found}"
        for path in pages
        for found in re.findall(r'\{\{ [^}]*?(?<!utc)\|date:"[^"]*H[^"]*" \}\} UTC', path.read_text())
    ]

    assert pages
    assert wrong == []


@pytest.mark.django_db
def test_what_django_writes_itself_has_the_form_of_all_others(admin_client):
    """Such as the instants on the page of a row that can only be read."""
    row = UsageRowFactory(at=NOON.replace(second=0))
    admin_client.cookies[ZONE_COOKIE] = "Europe/Berlin"

    page = admin_client.get(f"/admin/usage/usagerow/{row.pk}/change/").text

    assert "2026-11-24 13:00:00 +0100" in page
    assert "p.m." not in page
