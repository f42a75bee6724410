from datetime import timedelta

import pytest
from django.db import DatabaseError, connection
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from controlplane.core.store import keys
from controlplane.releases.publishing.models import Revision
from tests.factories import ModelPriceFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


def numbers(call) -> dict[str, float]:
    text = call("GET", "/metrics").content.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


@pytest.fixture
def broken_database(monkeypatch):
    def fail(*_, **__):
        raise DatabaseError("gone")

    monkeypatch.setattr(connection, "cursor", fail)


def test_a_process_that_answers_is_alive(call, broken_database):
    """Whatever else is down: restarting it would cure nothing."""
    response = call("GET", "/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_with_everything_there_it_is_ready(call, store):
    """The store and SQL answer."""
    assert call("GET", "/readyz").json() == {"status": "ok", "database": "ok", "store": "ok"}


def test_without_the_store_it_still_serves(call):
    """Changes are kept until it is back; operators look at the admin meanwhile."""
    response = call("GET", "/readyz")

    assert response.status_code == 200
    assert response.json() == {"status": "degraded", "database": "ok", "store": "unreachable"}


def test_without_the_database_it_is_not_ready(call, broken_database):
    """A balancer sends requests elsewhere."""
    response = call("GET", "/readyz")

    assert (response.status_code, response.json()["database"]) == (503, "unreachable")


def test_metrics_count_publications_and_what_waits(api, call):
    """The store is away: three changes wait."""
    for slug in ("a", "b", "c"):
        api("POST", "projects", {"slug": slug, "name": slug})

    found = numbers(call)

    assert found["sluicegate_published_revision"] == 0
    assert found["sluicegate_outbox_pending"] == 3
    assert found["sluicegate_outbox_oldest_seconds"] > 0
    assert found["sluicegate_store_reachable"] == 0
    assert found["sluicegate_database_reachable"] == 1


def test_metrics_count_the_fleet_by_what_it_runs(call, store, instance, lost_at):
    """Current, behind, and lost whatever it ran."""
    Revision.objects.create(number=5)
    instance("proxy-1", revision=5)
    instance("proxy-2", revision=6)
    instance("proxy-3", revision=4)
    instance("proxy-4", revision=5, seen_at=lost_at)

    found = numbers(call)

    assert found["sluicegate_instances current"] == 2
    assert found["sluicegate_instances behind"] == 1
    assert found["sluicegate_instances lost"] == 1
    assert found["sluicegate_published_revision"] == 5
    assert found["sluicegate_store_reachable"] == 1


def test_metrics_survive_a_database_that_is_gone(call, store, broken_database):
    """That it is gone is itself a number."""
    assert numbers(call)["sluicegate_database_reachable"] == 0


def test_metrics_name_no_key_and_do_not_grow_with_use(call, store):
    """As many series with a hundred tokens as with none."""
    before = set(numbers(call))
    for project in (ProjectFactory(), ProjectFactory()):
        TokenFactory.create_batch(10, project=project)

    assert set(numbers(call)) == before


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "status"),
    [
        ("127.0.0.1", None, [], 200),
        ("10.1.2.3", None, [], 200),
        ("8.8.8.8", None, [], 403),
        ("2001:db8::1", None, [], 403),
        ("127.0.0.1", "8.8.8.8", [], 403),
        ("127.0.0.1", "10.1.2.3", [], 403),
        ("127.0.0.1", "8.8.8.8", ["127.0.0.1"], 403),
        ("127.0.0.1", "10.1.2.3", ["127.0.0.1"], 200),
        ("", None, [], 403),
    ],
)
def test_metrics_are_for_private_networks(settings, peer, forwarded, trusted, status):
    """Whoever comes from the Internet, or through a proxy of which nobody said that it is one, does not read them."""
    settings.TRUSTED_PROXIES = trusted
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}

    response = Client(REMOTE_ADDR=peer, headers=headers).get("/metrics")

    assert response.status_code == status


def test_the_networks_of_metrics_can_be_chosen(settings):
    """An empty list is nobody."""
    settings.METRICS_NETWORKS = ["8.8.8.0/24"]
    assert Client(REMOTE_ADDR="8.8.8.8").get("/metrics").status_code == 200
    assert Client(REMOTE_ADDR="127.0.0.1").get("/metrics").status_code == 403

    settings.METRICS_NETWORKS = []
    assert Client(REMOTE_ADDR="8.8.8.8").get("/metrics").status_code == 403


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/docs/", 400)])
def test_probes_need_not_know_a_name_of_the_host(settings, path, status):
    """They ask a container at its address, and each refusal would be an error in the log."""
    settings.ALLOWED_HOSTS = ["limits.example"]

    assert Client(raise_request_exception=False).get(path, headers={"Host": "10.1.2.3:8000"}).status_code == status


def test_metrics_say_how_late_publishing_usage_and_prices_are(call, store, client_of_store):
    """By the last revision whose numbers are final, the oldest report of all streams, and the newest price."""
    Revision.objects.create(number=5, is_counted=True, lag_ms=1_250)
    Revision.objects.create(number=6)
    hour_ago = timezone.now() - timedelta(hours=1)
    ModelPriceFactory(changed_at=hour_ago - timedelta(hours=1))
    ModelPriceFactory(changed_at=hour_ago)
    for second in (0, 5):
        stream = keys().usage_shard(second) if second else keys().usage
        client_of_store.xadd(stream, {"rows": "x"}, id=f"{int(hour_ago.timestamp()) + 5 - second}000-0")

    found = numbers(call)

    assert found["sluicegate_publish_lag_seconds"] == 1.25
    assert found["sluicegate_usage_waiting"] == 2
    assert 3_600 <= found["sluicegate_drain_lag_seconds"] < 4_000
    assert 3_600 <= found["sluicegate_price_age_seconds"] < 4_000


def test_metrics_of_what_is_not_known_are_absent(call, store):
    """A zero would be taken for a price of just now. Of usage it is known that none waits."""
    found = numbers(call)

    assert not {"sluicegate_publish_lag_seconds", "sluicegate_price_age_seconds"} & set(found)
    assert (found["sluicegate_usage_waiting"], found["sluicegate_drain_lag_seconds"]) == (0, 0)


def test_metrics_of_usage_are_absent_without_the_store(call):
    """Nobody knows what waits there."""
    assert not {"sluicegate_usage_waiting", "sluicegate_drain_lag_seconds"} & set(numbers(call))


@pytest.mark.parametrize(("shard", "shown"), [(None, set()), (3, {2})])
def test_metrics_of_usage_pass_over_a_key_that_is_no_stream(call, client_of_store, shard, shown):
    """Enforcers write to the main stream then. If that is the key, nothing arrives, and zeros would hide it."""
    for number in (1, 31):
        client_of_store.xadd(keys().usage_shard(number), {"rows": "x"})
    client_of_store.set(keys().usage if shard is None else keys().usage_shard(shard), "no stream")

    found = numbers(call)

    assert {value for name, value in found.items() if name == "sluicegate_usage_waiting"} == shown
    assert ("sluicegate_drain_lag_seconds" in found) == bool(shown)
