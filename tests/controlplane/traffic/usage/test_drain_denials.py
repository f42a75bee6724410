"""Sampled denials go from the stream to SQL once, are listed, and are gone after 8 days."""

import json
import re
from datetime import timedelta

import pytest
from django.urls import reverse

from controlplane.traffic.usage import rollup
from controlplane.traffic.usage.drain import drain
from controlplane.traffic.usage.models import DeniedRequest
from tests.controlplane.traffic.usage.conftest import NOON
from tests.factories import LimitFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

DENIALS = "sg:{usage}:denials"
AT_MS = int(NOON.timestamp() * 1_000) + 123


def denied(decision="dec_1", *, attributes=(), **changed):
    """One row of a sample, as an enforcer writes it."""
    fields = {"decision": decision, "at_ms": AT_MS, "reason": "limited", "project": "proj_1", "token": "tok_1"}
    fields |= {"policy": "pol_1", "limit": "per-minute", "attributes": dict(attributes)}
    return list((fields | changed).values())


@pytest.fixture
def report(client_of_store):
    """Append an entry as an enforcer does."""
    return lambda *rows: client_of_store.xadd(DENIALS, {"instance": "proxy-1", "rows": json.dumps(rows)})


def test_a_sampled_denial_arrives_in_sql(report, client_of_store):
    """With what the enforcer knew of it; the stream is empty again."""
    report(denied(attributes={"ip": "10.0.0.1"}), denied("dec_2"))
    drain(NOON)

    row = DeniedRequest.objects.get(decision="dec_1")
    assert (row.at, row.instance, row.reason) == (NOON + timedelta(milliseconds=123), "proxy-1", "limited")
    assert (row.project_id, row.token_id, row.policy_id, row.limit_name) == ("proj_1", "tok_1", "pol_1", "per-minute")
    assert row.attributes == {"ip": "10.0.0.1"}
    assert client_of_store.xlen(DENIALS) == 0


def test_a_decision_is_saved_once(report):
    """A drain that died before it deleted the entry, or an enforcer that sent it twice, adds no row."""
    for _ in range(2):
        report(denied(), denied("dec_2"))
        drain(NOON)

    assert DeniedRequest.objects.count() == 2


@pytest.mark.parametrize(
    "row",
    [
        denied(""),
        denied("d" * 201),
        denied(at_ms=0),
        denied(at_ms=True),
        denied(reason=""),
        denied(project="\0"),
        denied(attributes={"ip": 7}),
        denied(attributes={"ip": "x" * 81}),
        denied(attributes={str(i): "" for i in range(9)}),
        denied()[:-1],
        "dec_1",
    ],
)
def test_what_no_enforcer_writes_is_dropped(report, client_of_store, row):
    """It stops neither the entries after it nor the usage."""
    report(row)
    report(denied("dec_good"))
    drain(NOON)

    assert list(DeniedRequest.objects.values_list("decision", flat=True)) == ["dec_good"]
    assert client_of_store.xlen(DENIALS) == 0


def test_sampled_denials_are_kept_for_eight_days(report):
    """A week of them is there at any time."""
    report(denied())
    drain(NOON)
    at = DeniedRequest.objects.get().at

    rollup.prune(at + timedelta(days=8))
    assert DeniedRequest.objects.count() == 1
    rollup.prune(at + timedelta(days=8, seconds=1))
    assert DeniedRequest.objects.count() == 0


def test_the_admin_lists_them_as_a_sample(report, admin_client):
    """Attributes come from tenants: they are shown, and never obeyed."""
    report(denied(attributes={"path": "<script>alert(1)</script>"}))
    drain(NOON)
    page = admin_client.get(reverse("admin:usage_deniedrequest_changelist")).content.decode()

    assert "A sample, kept for 8 days" in page
    assert "path=&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert(1)" not in page
    assert "pol_1/per-minute" in page


def test_the_admin_names_what_it_lists(report, admin_client):
    """A stranger knows a token by its name, not by its id."""
    limit = LimitFactory(name="per-minute", policy__slug="starter")
    token = TokenFactory(name="ci", project__slug="checkout", policy=limit.policy)
    report(denied(project=token.project_id, token=token.pk, policy=limit.policy_id))
    drain(NOON)

    page = admin_client.get(reverse("admin:usage_deniedrequest_changelist")).content.decode()

    links = re.findall(r'<a class="text-link" href="(/admin/p[^"]+)">([^<]+)</a>', page)
    assert [(text, admin_client.get(url).status_code) for url, text in links] == [
        ("checkout", 200),
        ("ci", 200),
        ("starter", 200),
    ]
    assert "</a>/per-minute" in page
