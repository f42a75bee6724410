"""Keys that many use are repaired if somebody has spoilt them, and whoever looks learns of it."""

import pytest
from django.urls import reverse
from django.utils import timezone

from controlplane.core.store import keys
from controlplane.releases.publishing import shared_keys
from controlplane.releases.publishing.models import RepairedKey
from controlplane.traffic.usage.drain import drain
from tests.factories import ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

LAST = f"{2**64 - 1}-{2**64 - 1}"


@pytest.fixture
def repair(client_of_store):
    return lambda: [line.partition(" ")[0] for line in shared_keys.repair(timezone.now())]


def test_keys_that_are_right_stay(repair, client_of_store):
    """Also those that nobody has written yet."""
    ProjectFactory(has_intake=True)
    assert repair() == []

    for key in list(shared_keys.shared_keys()):
        if key.type == "stream":
            client_of_store.xadd(key.name, {"a": "b"})
    client_of_store.zadd(keys().instances, {"proxy-1": 1})
    client_of_store.set(keys().usage_shards, 4)

    assert repair() == []
    assert client_of_store.dbsize() == len(list(shared_keys.shared_keys()))


def test_a_key_of_another_type_is_deleted(repair, client_of_store, caplog):
    """Whatever it is for, and how often somebody does it."""
    project = ProjectFactory(has_intake=True)
    names = [key.name for key in shared_keys.shared_keys()]
    for _ in range(2):
        for name in names:
            client_of_store.rpush(name, "x")
        assert repair() == names

    assert client_of_store.dbsize() == 0
    assert set(RepairedKey.objects.values_list("times", flat=True)) == {2}
    own = RepairedKey.objects.get(project_id=project.pk)
    assert (own.key, own.kind, own.reason) == (keys().intake(project.pk), "intake", "it was a list and no stream")
    assert "sg:{fleet}:instances was deleted with all that it held: it was a list and no zset." in caplog.text


def test_a_stream_that_takes_no_more_is_deleted_when_it_is_empty(repair, client_of_store):
    """What waits there is counted, or set aside, before."""
    project = ProjectFactory(has_intake=True)
    intake = keys().intake(project.pk)
    for stream in (keys().usage, intake):
        client_of_store.xadd(stream, {"a": "b"}, id=LAST)

    assert repair() == []
    assert drain(timezone.now()).rejected == 2
    assert repair() == [keys().usage, intake]
    client_of_store.xadd(intake, {"a": "b"})
    assert repair() == []


def test_a_key_that_somebody_has_repaired_meanwhile_stays(client_of_store, monkeypatch):
    """As an entry that arrives between the look and the deletion."""
    usual = shared_keys.spoilt

    def look(*given):
        found = usual(*given)
        client_of_store.delete(keys().usage)
        client_of_store.xadd(keys().usage, {"a": "b"})
        return found

    monkeypatch.setattr(shared_keys, "spoilt", look)
    client_of_store.set(keys().usage, "x")

    assert shared_keys.repair(timezone.now()) == []
    assert client_of_store.xlen(keys().usage) == 1
    assert not RepairedKey.objects.exists()


def test_the_page_of_the_project_says_it(admin_client, client_of_store, repair):
    """Of a project without an account of its own, nothing is said."""
    project = ProjectFactory(has_intake=True)
    client_of_store.rpush(keys().intake(project.pk), "x")
    repair()

    said, silent = (
        admin_client.get(reverse("admin:projects_project_change", args=[one.pk])).text
        for one in (project, ProjectFactory())
    )

    assert "it was a list and no stream" in said
    assert "Account of the store" not in silent
