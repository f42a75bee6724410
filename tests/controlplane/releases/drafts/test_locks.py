"""A change and the deletion of its project at once, of which PostgreSQL ends one if each waits for the other."""

from threading import Thread
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import Client

from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.releases.drafts.models import PolicyDraft
from controlplane.web.kit.site import change_url
from tests.controlplane.web.pages.drafts.test_views import deed_url, form_of
from tests.enforcement.world import eventually
from tests.factories import LimitFactory, PolicyDraftFactory, ProjectFactory

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="locks of rows"),
]


def waits() -> bool:
    """Return whether another connection to the database waits for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")  # else a transaction sees the same activity again
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(cursor.fetchone()[0])


def post(client: Client, url: str, fields: dict[str, Any], answers: list[int]) -> None:
    """Send a form over a connection to the database of this thread's own, and add the status of the response."""
    try:
        answers.append(client.post(url, fields).status_code)
    finally:
        connections.close_all()


@pytest.mark.parametrize("deed", ["publish", "edit", "save"])
def test_it_waits_for_a_deletion_of_its_project_and_holds_nothing(as_operator: Client, deed: str) -> None:
    """The deletion locks the project, then its policies and drafts."""
    policy = LimitFactory(policy__project=ProjectFactory(slug="shop")).policy
    draft = PolicyDraftFactory(policy=policy, limits=list(policy.limits.all()))
    url = change_url(policy) if deed == "save" else deed_url(draft, deed)
    fields: dict[str, Any] = {"_start": "enforce"}
    if deed != "publish":
        fields = {**form_of(as_operator.get(url)), "limits-0-quota": "12"} | ({"_draft": "1"} if deed == "save" else {})
    answers: list[int] = []
    other = Thread(target=post, args=(as_operator, url, fields, answers))
    try:
        with transaction.atomic():
            Project.objects.select_for_update().get(slug="shop")
            other.start()
            assert eventually(waits, 30)
            for row in (policy, draft):
                assert type(row).objects.select_for_update(nowait=True).get(pk=row.pk)
    finally:
        other.join()

    assert answers[0] in (200, 302)
    assert PolicyDraft.objects.exists()
    assert Policy.objects.exists()


def test_who_loses_a_deadlock_begins_again(as_operator: Client) -> None:
    """The form of a policy locks it before its project, whose deletion does so the other way round."""
    policy = LimitFactory(policy__project=ProjectFactory(slug="shop")).policy
    url = change_url(policy)
    fields = {**form_of(as_operator.get(url)), "description": "changed"}
    answers: list[int] = []
    other = Thread(target=post, args=(as_operator, url, fields, answers))
    with connection.cursor() as cursor:
        # The other one looks for a deadlock, after this one is a part of it, and so loses.
        cursor.execute(f"ALTER DATABASE {connection.settings_dict['NAME']} SET deadlock_timeout = '5s'")
        try:
            with transaction.atomic():
                cursor.execute("SET LOCAL deadlock_timeout = '60s'")
                Project.objects.select_for_update().get(slug="shop")
                other.start()
                assert eventually(waits, 30)
                assert Policy.objects.select_for_update().get(pk=policy.pk).description == ""
        finally:
            other.join()
            cursor.execute(f"ALTER DATABASE {connection.settings_dict['NAME']} RESET deadlock_timeout")

    assert answers == [302]
    assert Policy.objects.get().description == "changed"
