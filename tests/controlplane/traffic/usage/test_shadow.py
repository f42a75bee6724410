"""A limit in shadow mode, judged by its would-deny count: from a proxy's process to every page that shows the count."""

import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.utils import timezone

from controlplane.releases.publishing import publisher
from controlplane.traffic.usage.drain import drain
from controlplane.traffic.usage.models import UsageRow
from tests.factories import LimitFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

PROXY = """
import sys
from prometheus_client import CollectorRegistry, generate_latest
from enforcement import Limiter
from enforcement.exporters.prometheus import SluicegateCollector

with Limiter.from_env() as limiter:
    allowed = sum(limiter.check(sys.argv[1]).allowed for _ in range(60))
    registry = CollectorRegistry()
    registry.register(SluicegateCollector(limiter))
    print(allowed, generate_latest(registry).decode())
"""


@pytest.fixture
def metrics(store):
    """What a proxy exports after 60 requests of which a shadow limit would deny 30. Its usage is in SQL."""
    # A sliding log, so that a minute that begins during the test changes nothing.
    limit = LimitFactory(name="try", algorithm="sliding_log", quota=30, window_seconds=60, mode="shadow")
    token = TokenFactory(project__slug="chat", project__policy=limit.policy)
    publisher.publish_all()
    environment = {**os.environ, "SLUICEGATE_REDIS_URL": store.url, "SLUICEGATE_TIMEOUT_MS": "1000"}
    command = [sys.executable, "-c", PROXY, token.secret]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    drain(timezone.now())
    allowed, _, exported = done.stdout.partition(" ")
    assert allowed == "60"
    return exported


def test_every_door_says_how_many_requests_a_shadow_limit_would_deny(metrics, client, api, capsys):
    """60 requests, 30 a minute: the first page, the chart, the report, REST and the metrics say 30."""
    client.force_login(User.objects.create_superuser("ann"))
    page = client.get("/admin/").context
    call_command("daily_report", "--day", datetime.now(UTC).date().isoformat())
    report = capsys.readouterr().out
    rows = api("GET", "usage").json()["results"]

    assert page["totals"] == {"allowed": 60, "denied": 0, "would_deny": 30}
    assert "60 allowed, of which 30 would be denied by shadow limits, 0 denied" in page["chart_description"]
    assert "60 allowed, 0 denied, 30 would be denied by shadow limits" in report
    assert "chat                60             0            30" in report
    assert sum(row["would_deny"] for row in rows) == 30
    assert "sluicegate_decisions_would_deny_total 30.0" in metrics


def test_the_total_of_a_token_counts_as_its_only_limit_does(metrics):
    """One shadow limit, so the row of all decisions and the row of the limit agree, in every period."""
    sums = {}
    for row in UsageRow.objects.all():
        key = row.period, row.limit_name
        sums[key] = sums.get(key, 0) + row.would_deny

    assert sums == dict.fromkeys([(period, limit) for period in ("minute", "hour", "day") for limit in ("", "try")], 30)
