"""What a key may do is judged by what it is when its change is made, whatever others do at the same time."""

import time
from functools import partial
from threading import Thread

import pytest
from django.db import connection, transaction

from controlplane.objects.keys.models import ManagementKey
from tests.controlplane.conftest import at_once
from tests.factories import ManagementKeyFactory, ProjectFactory
from tests.scale import scale

BODY = {"name": "ci", "scopes": ["policies:write"], "projects": ["chat"]}
NARROWED = {
    "scopes": lambda key: ManagementKey.objects.filter(pk=key.pk).update(scopes=["keys:write"]),
    "networks": lambda key: ManagementKey.objects.filter(pk=key.pk).update(networks=["127.0.0.0/8"]),
    "revoked": lambda key: ManagementKey.objects.filter(pk=key.pk).update(revoked_at=key.created_at),
    "keys:write": lambda key: ManagementKey.objects.filter(pk=key.pk).update(scopes=["policies:write"]),
}


def wait_for_a_waiter() -> None:
    """Wait until a request waits for a row. On SQLite, which has no such view, every writer waits by now or later."""
    waiting, deadline = connection.vendor != "postgresql", time.monotonic() + 20
    with connection.cursor() as cursor:
        while not waiting and time.monotonic() < deadline:
            cursor.execute("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            waiting = cursor.fetchone()[0]
    assert waiting


@pytest.mark.parametrize(
    ("what", "status"), [("scopes", 400), ("networks", 400), ("revoked", 401), ("keys:write", 403)]
)
def test_a_key_that_is_being_narrowed_makes_none_of_what_it_was(web, what, status):
    """Another request has changed its row and not committed yet."""
    key = ManagementKeyFactory(scopes=["keys:write", "policies:write"], projects=[ProjectFactory(slug="chat")])
    answers = []
    making = Thread(target=lambda: answers.append(web("POST", "management-keys", BODY, key=key)))

    with transaction.atomic():
        NARROWED[what](key)
        making.start()
        wait_for_a_waiter()
    making.join()

    assert [answer.status_code for answer in answers] == [status]
    assert ManagementKey.objects.count() == 1


@pytest.mark.proof
def test_keys_that_rotate_each_other_do_not_wait_for_each_other(web):
    """Each has one successor at most, and no request fails."""
    for _ in range(scale(1, 25)):
        one, other = ManagementKeyFactory(), ManagementKeyFactory()
        calls = [
            partial(web, "POST", f"management-keys/{target.pk}/rotate", {"overlap_seconds": 60}, key=key)
            for key, target in ((one, other), (other, one), (one, one))
        ]

        statuses = sorted(answer.status_code for answer in at_once(calls))

        # A key that was rotated ends, and so is less than one that does not.
        assert 201 in statuses
        assert set(statuses) <= {201, 403, 409}
        assert ManagementKey.objects.filter(replaced_by__isnull=False).count() == statuses.count(201)
        ManagementKey.objects.all().delete()
